"""Weights from any source into a model: what fits is loaded, and the rest is said."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from surgery import tree
from surgery.errors import PartialLoadWarning, PlanError
from surgery.families.registry import Registry, in_force
from surgery.operations.adapt_weights import Adapter, Names, told_names
from surgery.operations.apply import operate
from surgery.operations.arrivals import (
    Arrival,
    Arrivals,
    arrivals_of,
    check_memory,
    check_plain,
    rounded,
)
from surgery.operations.content import Content
from surgery.operations.converted import by_correspondence, check_rivals
from surgery.operations.correspondence import Correspondence
from surgery.operations.correspondence_file import read_correspondence
from surgery.operations.donors import Donor, Gift, check_readable
from surgery.operations.incoming import Incoming, live
from surgery.operations.mapping import Pair
from surgery.operations.matched import matched
from surgery.operations.names import remembered
from surgery.operations.places import Places, places_of
from surgery.operations.plan import Outcome, Plan, Step
from surgery.operations.published import published
from surgery.operations.values import parameter_like
from surgery.weights.folding import fold
from surgery.weights.match import check_share
from surgery.weights.memory import identity
from surgery.weights.renaming import Rename
from surgery.weights.source import read
from surgery.weights.value import Weights
from surgery.weights.verdicts import Matching, Mismatch, printable

_SHOWN = 6


def load_weights(
    model: nn.Module,
    source: object,
    *,
    rename: Rename | Correspondence | str | os.PathLike[str] | None = None,
    drop: object = (),
    on_mismatch: object = "skip",
    min_coverage: float = 0.5,
    assign: bool = False,
    mmap: bool = False,
    inside: str | None = None,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Outcome:
    """Load weights into a model: what fits, with one verdict for every key of both sides.

    Names are matched through wrappers and prefixes, by the dialects that the model's family
    knows, through the renaming that layers do in their own loading code, and by ``rename``.
    Tensors of the model stay the same objects, with their dtype, device, ``requires_grad`` and
    ties; they get the values. What was skipped or left missing is one ``PartialLoadWarning``.

    Args:
        model: any module; it is changed in place. ``torch.compile``'s wrapper is passed through.
        source: a file, a directory, a mapping from names to tensors, a model, ``Weights``, or an
            entry that a library publishes, with ``url``; the class names that it lists are
            remembered where its head is loaded. It is not changed.
        rename: names for the source's keys: a mapping from keys to names, pairs of a regular
            expression and a replacement, or a callable from a key to its name or None; or what
            ``surgery.align`` found, from the model that the source was saved from to this one,
            which also cuts, joins and transposes, or the file that its JSON was written to.
        drop: patterns of keys of either side to leave out, as in ``surgery.freeze``.
        on_mismatch: what becomes of tensors that fit by name and not by shape: ``"skip"``;
            ``"error"``; ``"adapt"`` (another number of input channels, another kernel size,
            position embeddings on another grid, rows of classes that both sides know by name); a
            callable that gets the model's address, a copy of the source's tensor and one of the
            model's, and returns a tensor of the model's shape, or None to skip. Or a mapping from
            patterns of the model's keys to these.
        min_coverage: the share of tensors, 0 to 1, that must match by name and shape on the
            model's side or on the source's.
        assign: put the source's own tensors into the model, in their dtype and on their device,
            as ``load_state_dict(assign=True)`` does: nothing is copied. Parameters are other
            objects then; ties and ``requires_grad`` stay. A dict's tensors are in both then.
        mmap: map files instead of copying what is read, as in ``surgery.weights.read``. With
            ``assign`` nothing is read before it is used.
        inside: which entry of a training checkpoint to take.
        dry_run: return the plan in an outcome, and touch nothing.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The outcome. ``outcome.plan.matching`` holds the verdicts. ``undo()`` gives the model its
        old values back, bit for bit.

    Raises:
        CoverageError: too little of the source fits; the closest names are shown.
        PlanError: a tensor does not fit and that is an error, parameters on meta would be left
            without values, or the model is quantised. Nothing was touched.
        ArgumentError: a wrong argument, or a policy that made nothing usable.
        WeightsError: the source cannot be read. The model is as it was.
        AddressError: by a correspondence, the source lacks a tensor that belongs into the model.
        WrappedModelError: the model is inside DataParallel, DistributedDataParallel or FSDP.
        VerificationError: a check failed. Everything was undone.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> source = {f"module.{key}": value + 1 for key, value in model.state_dict().items()}
        >>> outcome = surgery.load_weights(model, source, drop="1.bias", on_mismatch="error")
        >>> torch.equal(model[0].weight, source["module.0.weight"])
        True
        >>> outcome.plan.matching.model_verdicts["1.bias"]
        'dropped'
    """
    tree.check_model(model)
    tree.check_changeable(model)
    known = in_force(registry)
    inner = tree.unwrap(model)
    entry = published(source)
    weights = read(entry.source, mmap=mmap, inside=inside, registry=known)
    if isinstance(rename, (str, os.PathLike)):
        rename = read_correspondence(rename)
    if isinstance(rename, Correspondence):
        check_share(min_coverage)
        weights, drop = by_correspondence(
            inner, weights, rename, drop=drop, on_mismatch=on_mismatch, min_coverage=min_coverage
        )
        rename = None

    def planned() -> Plan:
        loading = _Loading(
            inner,
            weights,
            places_of(inner),
            known,
            assign=assign,
            fresh=not mmap and not isinstance(source, Weights),
            classes=_Classes(source, entry.classes, known),
        )
        plan, said = loading.plan(rename, drop, on_mismatch, min_coverage)
        if said and not dry_run:
            # Before anything is touched: where warnings are errors, nothing is.
            warnings.warn(f"{plan.title}: {said}", PartialLoadWarning, stacklevel=4)
        return plan

    return operate(model, planned, dry_run=dry_run, registry=registry)


@dataclass(frozen=True, eq=False)
class _Classes:
    """What the classes of a source are called."""

    source: object
    listed: Names
    registry: Registry

    def names(self, count: int) -> Names:
        """The names of so many classes, from wherever they are known."""
        if self.listed is not None:
            return self.listed if len(self.listed) == count else None
        if not isinstance(self.source, nn.Module):
            return None
        names = remembered(self.source)
        if names is not None and len(names) == count:
            return names
        return told_names(self.source, count, self.registry)


@dataclass(frozen=True, eq=False)
class _Loading:
    """One loading on its way to a plan. Nothing is touched."""

    model: nn.Module
    weights: Weights
    places: Places
    registry: Registry
    assign: bool
    fresh: bool
    classes: _Classes

    def plan(
        self, rename: Rename | None, drop: object, on_mismatch: object, min_coverage: float
    ) -> tuple[Plan, str]:
        """The plan, and what to warn of."""
        found = matched(
            self.model,
            self.weights,
            self.places.infos,
            self.registry,
            rename=rename,
            drop=drop,
            on_mismatch=on_mismatch,
            min_coverage=min_coverage,
        )
        matching = found.matching
        check_rivals(matching, self.weights)
        adapter = Adapter(self.model, self.registry, self.classes.names)
        arrivals = self._arrivals(matching, adapter)
        matching = _settled(matching, arrivals)
        self._check_filled(arrivals)
        steps, there = self._steps(arrivals)
        notes = [*self.weights.notes, *found.notes, *adapter.remarks]
        notes += self._rounding(arrivals)
        if there:
            notes.append(f"{there} tensors of the source are the model's own already")
        notes += self._left(matching)
        inside = adapter.inside(matching.mismatched, on_mismatch)
        loud = _loud(inside)
        notes += [loud] if loud else []
        count = sum(e.tensor.numel() for e in self.places.index.of_kind("parameter"))
        plan = Plan(
            self._title(matching),
            tuple(steps),
            (),
            (count, count),
            notes=tuple(notes),
            classes=self._learned(matching, adapter),
            matching=matching,
        )
        return plan, "; ".join(filter(None, [loud, *found.warnings, matching.warning()]))

    def _learned(self, matching: Matching, adapter: Adapter) -> Names:
        """The names of the classes, where the source lists them and fills a head with them."""
        names = self.classes.listed
        if names is None or adapter.ends is None:
            return None
        for key in matching.pairs:
            rows = self.places.infos[key].shape[:1]
            if rows == (len(names),) and adapter.ends.is_head(self.places.entry(key).addresses):
                return names
        return None

    def _title(self, matching: Matching) -> str:
        loaded = len(matching.model_verdicts) - len(matching.missing) - len(matching.dropped)
        loaded -= sum(item.policy == "skip" for item in matching.mismatched)
        total = len(self.places.infos)
        return f"load_weights({loaded} of {total} tensors from {self.weights.origin})"

    def _arrivals(self, matching: Matching, adapter: Adapter) -> Arrivals:
        """What each tensor gets, read when its turn comes."""
        wanted = {
            **matching.pairs,
            **{item.key: item.source for item in matching.mismatched if item.policy != "skip"},
        }
        incoming = Incoming(self.weights, set(matching.pairs.values()))
        donor = Donor(self.weights.origin, {}, {}, None)
        gifts = {name: self._gift(name, incoming, donor) for name in set(wanted.values())}
        keys = {self.places.entry(key).address: key for key in wanted}
        order = {name: place for place, name in enumerate(self.weights.tensors)}
        pairs = [
            Pair(wanted[key], address)
            for address, key in sorted(keys.items(), key=lambda item: order[wanted[item[1]]])
        ]
        policies = {item.key: item.policy for item in matching.mismatched}
        return arrivals_of(
            replace(donor, tensors=gifts),
            self.model,
            pairs,
            lambda address: policies[keys[address]],
            adapter,
            self.places.index,
        )

    def _gift(self, name: str, incoming: Incoming, donor: Donor) -> Gift:
        info, held = self.weights.tensors[name], live(self.weights, name)
        content = Content(lambda: incoming.read(name), self.fresh)
        addresses = (name, *info.aliases)
        gift = Gift(name, tuple(info.shape), info.dtype, content, None, addresses)
        if held is not None:
            check_readable(Gift(name, gift.shape, info.dtype, content, held, addresses), donor)
        return gift

    def _live(self, arrival: Arrival) -> torch.Tensor | None:
        return live(self.weights, arrival.gift.address)

    def _check_filled(self, arrivals: Arrivals) -> None:
        """Refuse to leave a parameter or buffer without values."""
        filled = {id(each.entry.tensor) for each in arrivals.all}
        empty = [
            entry.address
            for entry in self.places.index.of_kind("parameter", "buffer")
            if entry.tensor.is_meta and id(entry.tensor) not in filled
        ]
        if empty:
            more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
            raise PlanError(
                f"{len(empty)} tensors of the model are on meta, and the source does not fill them",
                where=empty[0],
                expected="values for every parameter and buffer",
                found=", ".join(fold(empty)[:_SHOWN]) + more,
                fix="surgery.build(target, weights=source) initialises what a source does not "
                "fill; or model.to_empty(device='cpu') and initialise it first",
            )

    def _steps(self, arrivals: Arrivals) -> tuple[list[Step], int]:
        """The steps in the order of the source, and how many tensors are in place already."""
        steps: list[Step] = []
        writes: list[Arrival] = []
        entries = self.places.index.tensors.values()
        # Only tensors in memory can be the model's own.
        in_memory = any(self._live(each) is not None for each in arrivals.all[:1])
        mine = {_storage(entry.tensor) for entry in entries} if in_memory else set()
        there = 0
        for each in arrivals.all:
            ours, theirs = each.entry.tensor, self._live(each)
            if theirs is not None and identity(theirs) == identity(ours) and not each.adapted:
                there += 1
            elif self.assign or ours.is_meta:
                steps.append(self._installed(each))
            else:
                check_plain(ours, each.address)
                if theirs is not None and not each.adapted and _storage(theirs) in mine:
                    each = replace(each, content=_taken(each.content))
                writes.append(each)
        check_memory(self.places.index, writes)
        return [*steps, *map(self._written, writes)], there

    def _written(self, each: Arrival) -> Step:
        return Step(
            "values", each.addresses, _form(each.entry.tensor), self._origin(each), each.content
        )

    def _installed(self, each: Arrival) -> Step:
        """The step that puts in the source's tensor itself."""
        old, theirs = each.entry.tensor, self._live(each)
        if self.assign and theirs is not None and not each.adapted:
            values = theirs.detach()
        else:
            values = each.content.read()
        if not self.assign:
            # Only what is on meta comes here then: it becomes what it stood for.
            values = values.to(_device(), old.dtype)
        new = parameter_like(old, values, None)
        kind: Literal["parameter", "buffer"]
        kind = "parameter" if isinstance(old, nn.Parameter) else "buffer"
        return Step(kind, each.addresses, _form(old), self._origin(each), new, elsewhere=True)

    def _origin(self, each: Arrival) -> str:
        theirs, ours = each.gift.dtype, each.entry.tensor.dtype
        cast = f", {theirs} -> {ours}" if theirs != ours and not self.assign else ""
        return f"{each.gift.address}{', adapted' if each.adapted else ''}{cast}"

    def _rounding(self, arrivals: Arrivals) -> Iterator[str]:
        """What conversions lose."""
        if self.assign:
            return
        lost: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
        for each in arrivals.all:
            theirs, ours = each.gift.dtype, each.entry.tensor.dtype
            # Numbers that are cut to whole or real ones are in the warning.
            if theirs != ours and _holds(ours, theirs) and (count := rounded(each)):
                lost.setdefault((theirs, ours), []).append(count)
        for (theirs, ours), counts in lost.items():
            yield f"{theirs} -> {ours} rounds {sum(counts):,} values of {len(counts)} tensors"

    def _left(self, matching: Matching) -> Iterator[str]:
        """What a file cannot fill, or did not."""
        if matching.undone:
            yield matching.undone
        if matching.counters:
            count = len(matching.counters)
            yield f"{count} counters of batches are not in the source, as in old files, and stay"
        if self.places.extra:
            shown = ", ".join(fold(self.places.extra)[:_SHOWN])
            yield f"extra state of modules is not loaded: {shown}. module.set_extra_state(...)"


def _settled(matching: Matching, arrivals: Arrivals) -> Matching:
    """The matching with what a callable left out as skipped."""
    skipped = {item.source for item in arrivals.skipped}
    settled = tuple(
        replace(item, policy="skip") if item.source in skipped else item
        for item in matching.mismatched
    )
    return replace(matching, mismatched=settled) if skipped else matching


def _loud(inside: Iterable[Mismatch]) -> str:
    """The sentence about layers that lie neither at the head nor at the input."""
    keys = [item.key for item in inside]
    if not keys:
        return ""
    folded = fold(keys)
    more = f" and {len(folded) - _SHOWN} more lines" if len(folded) > _SHOWN else ""
    which = f"{', '.join(map(printable, folded[:_SHOWN]))}{more}"
    return (
        f"the middle of the model does not fit: {len(keys)} tensor{'s' * (len(keys) > 1)} "
        f"({which}) stay as they were, and the source is probably of another architecture"
    )


def _storage(tensor: torch.Tensor) -> int:
    if tensor.is_meta or tensor.layout != torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def _taken(content: Content) -> Content:
    """Values that are read right now: they lie where the model is going to be written."""
    values = content.read()
    return Content(lambda: values, fresh=True)


def _holds(ours: torch.dtype, theirs: torch.dtype) -> bool:
    """Whether a dtype holds such numbers at all, if rounded."""
    return torch.can_cast(theirs, ours)


def _device() -> torch.device:
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
