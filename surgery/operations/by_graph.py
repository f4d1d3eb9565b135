"""What goes where between two implementations of one architecture, and the proof that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.graph.align import Alignment
from surgery.graph.distinctions import Distinction, distinctions, folded, ways
from surgery.operations.align import Twins, correspondences, twins_of
from surgery.operations.content import Content
from surgery.operations.converted import check_coverage
from surgery.operations.correspondence import Correspondence
from surgery.operations.donors import Donor, Gift, check_readable
from surgery.operations.evidence import Proof
from surgery.operations.journal import Journal
from surgery.operations.mapping import Pair
from surgery.operations.meeting import cut, parted
from surgery.operations.plan import Step
from surgery.operations.proof import prove
from surgery.operations.seams import common_part
from surgery.operations.settings import setting_steps
from surgery.operations.sharing import apart, check_ties
from surgery.operations.tables import ROUNDED, TABLE, remedy
from surgery.operations.writes import makers

_SHOWN = 8
_HIDDEN = "this example does not show it"
_UNTOLD = "whether this example shows it could not be told"
# Settings that decide where a layer looks.
_SPATIAL = frozenset({"stride", "padding", "dilation", "kernel_size", "groups", "dim", "shifts"})
# Those, and what one operation may say in several ways: over which axes, and whether they stay.
_FORMS = _SPATIAL | {ROUNDED, "keepdim", "output_size", "alpha", "value", "other", "non_blocking"}


@dataclass(frozen=True, eq=False)
class Aligned:
    """A donor whose tensors are cut and joined as the recipient has them.

    Attributes:
        donor: the donor, with one gift for each of the recipient's tensors.
        pairs: the gifts and where they go.
        settings: steps that give the recipient's layers the donor's settings.
        proof: what came out of both.
        notes: what a person should know.
    """

    donor: Donor
    pairs: tuple[Pair, ...]
    settings: tuple[Step, ...]
    proof: Proof
    notes: tuple[str, ...]


def aligned(
    donor: Donor,
    recipient: nn.Module,
    examples: tuple[Any, Any],
    registry: Registry | None,
    *,
    differences: str,
    min_coverage: float,
) -> Aligned:
    """Align two models and prove it; nothing is touched.

    Args:
        donor: a live model.
        recipient: another.
        examples: arguments for the donor, or None; for the recipient, or None for the same.
        registry: the plugins to ask for an example.
        differences: ``refuse`` or ``set``.
        min_coverage: the share of tensors, 0 to 1, that must belong somewhere.

    Raises:
        ArgumentError: the donor is a checkpoint.
        CoverageError: too little of the two is the same.
        PlanError: what comes out is not equal.
    """
    model = _live(donor)
    _check_values(recipient)
    twins = twins_of(model, recipient, *examples, registry)
    refused: PlanError | None = None
    for correspondence, alignment in correspondences(twins):
        try:
            check_ties(correspondence)
        except PlanError as error:
            refused = refused or error
            continue
        check_coverage(correspondence, min_coverage)
        made = _gifts(donor, correspondence)
        attempt = _Attempt(twins, correspondence, alignment)
        for settings, told in attempt.settings(differences):
            try:
                proof = attempt.prove(settings)
            except PlanError as error:
                refused = refused or error
                continue
            partial = proof is not None and (proof.common or proof.seams)
            if proof is not None and partial and (named := attempt.parted()):
                refused = refused or attempt.apart(proof, named)
                continue
            hidden = attempt.hidden(proof, settings) if proof is not None else []
            if proof is not None and proof.holds and not hidden:
                notes = (*_notes(correspondence, proof), *told, *attempt.unseen(settings, told))
                return Aligned(made, _pairs(correspondence), tuple(settings), proof, notes)
            refused = refused or attempt.refusal(proof, hidden, differences, settings)
    raise refused or PlanError("nothing was aligned", fix="surgery.align(donor, recipient)")


def _live(donor: Donor) -> nn.Module:
    if donor.model is None:
        raise ArgumentError(
            "a checkpoint has no graph",
            where="match='graph'",
            expected="a live model as the donor",
            found=donor.title,
            fix="surgery.load_weights(model, checkpoint) into the model that it was saved from; "
            "then surgery.transplant(model, recipient, match='graph')",
        )
    return donor.model


def _check_values(recipient: nn.Module) -> None:
    """Refuse a recipient that cannot run: the proof needs one that does."""
    for entry in tree.index(recipient).of_kind("parameter", "buffer"):
        if entry.tensor.is_meta:
            raise PlanError(
                "the recipient's tensor is on meta, and nothing could be compared",
                where=f"{entry.address} of {type(recipient).__name__}",
                expected="a tensor with memory",
                found="a tensor on meta",
                fix="recipient.to_empty(device='cpu'), or surgery.align(donor, recipient) and "
                "surgery.load_weights(recipient, donor.state_dict(), rename=correspondence)",
            )


def _gifts(donor: Donor, found: Correspondence) -> Donor:
    """The donor with one gift for each tensor of the recipient that is filled."""
    gifts = {}
    for address, pairs in found.parts.items():
        sources = [donor.tensors[pair.donor] for pair in pairs if pair.donor]
        for source in sources:
            check_readable(source, donor)
        if address in found.straight:
            gifts[address] = sources[0]
            continue
        names = ", ".join(dict.fromkeys(source.address for source in sources)) or "zeros"
        gifts[address] = Gift(
            names,
            found.recipient.shapes[address],
            sources[0].dtype if sources else torch.float32,
            Content(lambda a=address: _assembled(donor, found, a)),  # type: ignore[misc]
            None,
            (names,),
        )
    return replace(donor, tensors=gifts)


def _assembled(donor: Donor, found: Correspondence, address: str) -> Any:
    return found.assemble(address, lambda name: donor.tensors[name].content.read())


def _pairs(found: Correspondence) -> tuple[Pair, ...]:
    return tuple(Pair(address, address, False) for address in found.parts)


def _notes(found: Correspondence, proof: Proof) -> Iterable[str]:
    yield f"proven: {proof}"
    if proof.seams:
        names = ", ".join(proof.seams[:_SHOWN])
        more = f" and {len(proof.seams) - _SHOWN} more" if len(proof.seams) > _SHOWN else ""
        yield f"compared from there on, both fed with one value: {names}{more}"
    if proof.silent is None:
        yield (
            "which tensors have a say in what was compared could not be told: there is no memory "
            "for slopes, or the code has none"
        )
    elif proof.silent:
        names = ", ".join(proof.silent[:_SHOWN])
        more = f" and {len(proof.silent) - _SHOWN} more" if len(proof.silent) > _SHOWN else ""
        why = "nothing that was compared depends on it"
        yield f"placed by the graphs alone, for {why}: {names}{more}"
    yield from proof.beyond[:_SHOWN]
    if len(proof.beyond) > _SHOWN:
        yield f"not compared, and different: {len(proof.beyond) - _SHOWN} operations more"
    yield from _unfelt(proof)
    yield from apart(found)
    for side, left in (("donor", found.donor_only), ("recipient", found.recipient_only)):
        yield from (f"not aligned, of the {side}: {each}" for each in left)


def _unfelt(proof: Proof) -> Iterator[str]:
    """Operations in which the two differ, and of which what was compared says nothing."""
    for found, why in ((proof.unfelt, _HIDDEN), (proof.untold, _UNTOLD)):
        alike: dict[tuple[str, str], list[str]] = {}
        for each in found:
            only = f", and only the {('donor', 'recipient')[each.side]} has it"
            key = "" if each.instead is not None else only, each.told
            alike.setdefault(key, []).append(each.module or "the model")
        for (only, told), modules in [*alike.items()][:_SHOWN]:
            more = f"; and {len(modules) - 1} more like this" if len(modules) > 1 else ""
            yield f"{why}{only}: {modules[0]} {told}{more}"
        if len(alike) > _SHOWN:
            yield f"{why}: {len(alike) - _SHOWN} more"


def _one_in_single(each: Distinction) -> bool:
    """Whether two numbers are one in single precision: it does not hide that they differ."""
    numbers = each.theirs, each.ours
    if not all(isinstance(number, float) for number in numbers):
        return False
    one, other = torch.tensor(numbers, dtype=torch.float32).tolist()
    return bool(one == other)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """One way in which the graphs may lie one over the other."""

    twins: Twins
    correspondence: Correspondence
    alignment: Alignment

    def settings(self, differences: str) -> Iterator[tuple[list[Step], list[str]]]:
        """What to take over of the donor's settings: nothing first, more where that fails.

        Padding and stride come last: they may be the same, written another way.
        """
        every = self.correspondence.differences
        told_apart = tuple(each for each in every if each.operation != TABLE)
        plain = tuple(each for each in told_apart if each.name not in _SPATIAL)
        if differences != "set" or not plain:
            yield [], []
        if differences != "set":
            return
        between = tuple(way for way in dict.fromkeys(ways(self.alignment)) if way.name)
        tried: list[list[Step]] = [] if plain else [[]]
        for found in (plain, every, (*every, *between)):
            steps, stay = setting_steps(self.twins.models[1], found)
            if steps not in tried:
                tried.append(steps)
                told = [
                    f"set as in the donor: {step.address} {step.before} -> {step.after}"
                    for step in steps
                ]
                yield steps, [*told, *(f"differs, and is no attribute to set: {s}" for s in stay)]

    def prove(self, settings: list[Step]) -> Proof | None:
        """Run both."""

        def prepare(model: nn.Module) -> None:
            Journal().perform(makers(model, tuple(settings)))

        try:
            return prove(self.twins, self.correspondence, self.alignment, prepare)
        except Exception as error:
            # Layers of the user's own run here; that they refuse is a finding like any other.
            if self.forgets(settings):
                raise self.stale() from error
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise self._refused(
                "with the donor's weights" + (" and settings" if settings else "") + " a model "
                f"no longer runs: {text[0]}",
                "two models that run on the example",
            ) from error

    def forgets(self, settings: list[Step]) -> bool:
        """Whether the recipient agrees once train mode made it forget what eval mode keeps."""
        if self.twins.models[1].training:
            return False

        def prepare(model: nn.Module) -> None:
            Journal().perform(makers(model, tuple(settings)))
            model.train()

        try:
            proof = prove(self.twins, self.correspondence, self.alignment, prepare)
        except Exception:  # The user's layers run here: that they refuse is an answer.
            return False
        return proof is not None and proof.holds

    def stale(self) -> PlanError:
        """Nothing is brought over: the recipient would not take notice."""
        return PlanError(
            "the recipient goes on with what eval mode keeps of its old weights",
            where=type(self.twins.models[1]).__name__,
            expected="outputs that follow the weights",
            found="equal outputs after train(), others before",
            fix="recipient.train().eval(), then surgery.transplant(donor, recipient, "
            "match='graph')",
        )

    def unseen(self, settings: list[Step], told: list[str]) -> Iterator[str]:
        """Settings that differ and that this example does not show; another might."""
        found = [*self.correspondence.differences, *ways(self.alignment)]
        stay = self._stays(settings)
        named = (d for d in found if d.name and d.name not in _FORMS and stay(d))
        names = [each for each in folded(named) if not any(each in note for note in told)]
        for each in names[:_SHOWN]:
            yield f"differs, and this example does not show it: {each}"
        if len(names) > _SHOWN:
            yield f"differs, and this example does not show it: {len(names) - _SHOWN} more"

    def _stays(self, settings: list[Step]) -> Callable[[Distinction], bool]:
        """Whether a distinction is there still, when these settings are the donor's."""
        done = {tuple(tree.split(step.address)) for step in settings}

        def stays(each: Distinction) -> bool:
            taken = (name for owner, name in done if owner == each.recipient)
            return not (each.name and any(each.name in name for name in taken))

        return stays

    def hidden(self, proof: Proof, settings: list[Step]) -> list[Distinction]:
        """What the two differ in, and equal outputs would not show.

        Single precision rounds away what a small number under a root does, and where nothing that
        comes out depends on an operation, it may be any.
        """
        stays = self._stays(settings)
        named: list[Distinction] = []
        if proof.single:
            found = [*self.correspondence.differences, *ways(self.alignment)]
            # Of a table of another size another part is read, and precision hides none of that.
            apart = _SPATIAL | {"shape", ROUNDED}
            told = (d for d in found if d.name and d.name not in apart and stays(d))
            named = [each for each in told if not _one_in_single(each)]
        if named or proof.dtype is not torch.float64:
            return named
        closed = {
            number
            for number, cell in enumerate(self.alignment.one.cells)
            if cell.slots and all(slot.piece.address in (proof.silent or ()) for slot in cell.slots)
        }
        near = closed | {
            number
            for number, cell in enumerate(self.alignment.one.cells)
            if any(stream.cell in closed for stream in cell.streams)
        }
        near |= {s.cell for number in closed for s in self.alignment.one.cells[number].streams}
        within = [pair for pair in self.alignment.pairs if pair[0] in near and closed]
        part = replace(self.alignment, pairs=tuple(within))
        own = replace(part, pairs=tuple(pair for pair in within if pair[0] in closed))
        return [each for each in (*distinctions(own), *ways(part)) if stays(each)]

    def parted(self) -> list[Distinction]:
        """Where the two go on in another way, though no tensor there is left over."""
        return parted(self.alignment, common_part(self.alignment, self.correspondence))

    def apart(self, proof: Proof, named: list[Distinction]) -> PlanError:
        """Nothing is brought over: what follows is fed with something else."""
        return self._refused(
            f"the two go on in different ways from the same tensors; up to there: {proof}",
            "the same operations, or tensors that only one has where the two part",
            named=named,
        )

    def _refused(
        self,
        what: str,
        expected: str,
        fix: str = "",
        named: list[Distinction] | None = None,
        first: Iterable[str] = (),
        settings: list[Step] | None = None,
    ) -> PlanError:
        """Nothing is brought over: what differs between the two, behind these settings."""
        stays = self._stays(settings or [])
        every = named or (*self.correspondence.differences, *ways(self.alignment))
        # What has no name may be the same, written in another way.
        found = sorted(filter(stays, dict.fromkeys(every)), key=lambda each: not each.name)
        names = [*first, *folded(found)]
        more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        return PlanError(
            what,
            where=", ".join(type(model).__name__ for model in self.twins.models),
            expected=expected,
            found="\n".join([*names[:_SHOWN], *more]) or "operations that look the same",
            fix=fix or "surgery.align(donor, recipient) shows what was aligned",
        )

    def refusal(
        self,
        proof: Proof | None,
        hidden: list[Distinction],
        differences: str,
        settings: list[Step],
    ) -> PlanError:
        """Why nothing is brought over."""
        if proof is None:
            return self._refused(
                "the two models have no result in common that could be compared",
                "an output, or a layer in the middle, that both reach by the same way",
                cut(self.correspondence),
            )
        if proof.unproven:
            return self._refused(
                f"whether the two compute the same could not be told: {proof.unproven}; {proof}",
                "numbers that follow the input",
                "surgery.transplant(..., example=...) with an example of another size",
            )
        hint = (
            "surgery.transplant(..., match='graph', differences='set') takes over the donor's "
            "settings where a layer holds them"
        )
        found = (*self.correspondence.differences, *ways(self.alignment))
        tables = [each for each in found if each.operation == TABLE]
        if differences == "set" or not self.can_be_set(found):
            hint = remedy(tables)
        if proof.holds:
            why = "nothing that was compared depends on where the two differ"
            if proof.single:
                why = (
                    "they could not be computed in double precision, and single precision hides it"
                )
            return self._refused(
                f"the outputs are equal and prove nothing: {why}; {proof}",
                "operations with the same settings",
                hint,
                hidden,
            )
        if self.forgets(settings):
            return self.stale()
        return self._refused(
            f"with the donor's weights the recipient computes something else: {proof}",
            "equal outputs within rounding",
            hint,
            first=self.homeless(),
            settings=settings,
        )

    def can_be_set(self, found: Iterable[Distinction]) -> bool:
        """Whether anything that differs is an attribute, which the recipient may take over."""
        named = [each for each in found if each.name]
        return bool(setting_steps(self.twins.models[1], named)[0])

    def homeless(self) -> list[str]:
        """What the donor adds and the recipient cannot: biases of layers that have none there."""
        entries = tree.index(self.twins.models[0]).of_kind("parameter", "buffer")
        here = {entry.address: entry.tensor for entry in entries}
        found = []
        for pair in self.correspondence.pairs:
            tensor = None if pair.recipient else here.get(pair.donor)
            if tensor is not None and not tensor.is_meta:
                numbers = pair.theirs.of(tensor.detach().contiguous())
                if bool(numbers.any()):
                    found.append(f"{pair.donor} is not zero, and the recipient's layer has none")
        more = [f"and {len(found) - _SHOWN // 2} more like this"]
        return found if len(found) <= _SHOWN // 2 else found[: _SHOWN // 2] + more
