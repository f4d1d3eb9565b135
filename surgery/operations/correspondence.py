"""Which tensor of one model is which of another: the value that ``surgery.align`` returns."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from surgery import tree
from surgery.errors import AddressError, PlanError
from surgery.graph.align import Alignment
from surgery.graph.canonical import Cell, Slot
from surgery.graph.distinctions import Distinction, distinctions
from surgery.graph.pieces import Piece, contiguous
from surgery.operations.spelled import spelled, verdicts
from surgery.operations.tables import tables_apart
from surgery.shown import Shown
from surgery.weights.memory import describe
from surgery.weights.value import TensorInfo
from surgery.weights.verdicts import Matching

Read = Callable[[str], torch.Tensor]

_SHOWN = 4
_ZEROS = "the other model has zeros in its place"


@dataclass(frozen=True)
class TensorPair:
    """Numbers of the donor and the place in the recipient where they belong.

    Attributes:
        donor: the address of the donor's tensor; empty where the donor has none and zeros belong.
        recipient: the address of the recipient's tensor; empty where it has none: it computes as
            with zeros, and the donor's numbers have to be zeros.
        theirs: which of the donor's numbers.
        ours: which of the recipient's.
        role: what they are for: ``product weight``, ``norm mean``, ``buffer``.
    """

    donor: str
    recipient: str
    theirs: Piece
    ours: Piece
    role: str


@dataclass(frozen=True)
class Leftover:
    """A tensor that has no counterpart, and why."""

    address: str
    shape: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.address} {self.shape}: {self.reason}"


@dataclass(frozen=True)
class Form:
    """What must be known of a model's tensors to convert between two: addresses and shapes.

    Attributes:
        title: what to call the model.
        shapes: of every parameter and buffer, by first address.
        aliases: every address that a state dict has, to the first.
        used: of every tensor that takes part in the forward pass, how many of its numbers do.
        constants: buffers that are tables, and no state of an operation.
    """

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    used: Mapping[str, int]
    constants: tuple[str, ...]

    @property
    def names(self) -> Mapping[str, str]:
        """The same as ``aliases``, with the tensors that no state dict has by their addresses."""
        return {address: address for address in self.shapes} | dict(self.aliases)


@dataclass(frozen=True, repr=False)
class Correspondence(Shown):
    """Which tensor of a donor is which of a recipient, from their graphs alone.

    Attributes:
        donor: the donor's tensors.
        recipient: the recipient's.
        pairs: what belongs where.
        reasons: by address, why tensors of the donor have no counterpart, and of the recipient.
        differences: in what aligned operations differ besides.
        ambiguous: how many groups of operations only the order of execution told apart.
        complete: whether all operations of both were aligned.
    """

    donor: Form
    recipient: Form
    pairs: tuple[TensorPair, ...]
    reasons: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
    differences: tuple[Distinction, ...] = ()
    ambiguous: int = 0
    complete: bool = True

    def __repr__(self) -> str:
        return f"<Correspondence of {len(self.filled)} tensors, {self.coverage:.0%}>"

    @cached_property
    def parts(self) -> Mapping[str, tuple[TensorPair, ...]]:
        """The pairs of each of the recipient's tensors that they fill, by its address."""
        found: dict[str, list[TensorPair]] = {}
        for pair in self.pairs:
            if pair.recipient:
                found.setdefault(pair.recipient, []).append(pair)
        return {
            address: tuple(pairs)
            for address, pairs in found.items()
            if sum(pair.ours.numel for pair in pairs) == self.recipient.used[address]
            and len({pair.ours for pair in pairs}) == len(pairs)
        }

    @cached_property
    def torn(self) -> Mapping[str, tuple[str, ...]]:
        """The recipient's tensors that several of the donor's would have to fill, and which.

        The recipient ties there what the donor does not.
        """
        found: dict[Piece, dict[str, None]] = {}
        for pair in self.pairs:
            if pair.recipient:
                found.setdefault(pair.ours, {})[pair.donor] = None
        return {ours.address: tuple(names) for ours, names in found.items() if len(names) > 1}

    @property
    def filled(self) -> tuple[str, ...]:
        """The recipient's tensors that get all their values, by first address."""
        return tuple(self.parts)

    @property
    def coverage(self) -> float:
        """The share of tensors that belong somewhere: the better of both sides, 0 to 1."""
        shares = [
            len(done) / max(len(form.shapes) - len(form.constants), 1)
            for done, form in ((self.read, self.donor), (self.parts, self.recipient))
        ]
        return min(max(shares), 1.0)

    @cached_property
    def read(self) -> frozenset[str]:
        """The donor's tensors of which something goes into the recipient, by first address."""
        return frozenset(p.donor for pairs in self.parts.values() for p in pairs if p.donor)

    @cached_property
    def donor_only(self) -> tuple[Leftover, ...]:
        """Tensors of the donor of which nothing has a place in the recipient, and why."""
        return tuple(_leftovers(self.donor, self.read, self.reasons[0]))

    @cached_property
    def recipient_only(self) -> tuple[Leftover, ...]:
        """Tensors of the recipient that the donor does not fill, and why."""
        begun = {
            pair.recipient: "only a part of it has a counterpart, or it has several"
            for pair in self.pairs
        }
        return tuple(_leftovers(self.recipient, self.parts, begun | dict(self.reasons[1])))

    @property
    def rename(self) -> dict[str, str | None]:
        """The recipient's name for every name in the donor's state dict, to read or to edit.

        None for those that do not go along, or not as they are. Packed, cut and reshaped ones
        are what ``surgery.load_weights(..., rename=correspondence)`` and ``convert`` are for.
        """
        straight = {donor: address for address, donor in self.straight.items()}
        return {address: straight.get(first) for address, first in self.donor.aliases.items()}

    @cached_property
    def straight(self) -> Mapping[str, str]:
        """The recipient's tensors that get one of the donor's as it is, and which."""
        found = {}
        for address, (pair, *others) in self.parts.items():
            shape = self.recipient.shapes[address]
            fits = pair.donor and self.donor.shapes[pair.donor] == shape and not others
            if fits and pair.theirs.is_whole(shape) and pair.ours.is_whole(shape):
                found[address] = pair.donor
        return found

    def sources(self, given: Mapping[str, TensorInfo]) -> dict[str, str]:
        """What a checkpoint of the donor calls the donor's tensors, wrappers passed over.

        Args:
            given: facts of its tensors by name.

        Returns:
            Its names by the donor's first addresses; those that it lacks are left out.

        Raises:
            PlanError: two parts of it fit the donor equally well.
        """
        return spelled(self.donor.names, self.matching(given))

    def matching(self, given: Mapping[str, TensorInfo]) -> Matching:
        """The donor's tensors and those of a checkpoint of it, with a verdict for every one."""
        return verdicts(self.donor.shapes, self.donor.names, given)

    def given(self, there: Container[str], left_out: Container[str] = ()) -> tuple[str, ...]:
        """The recipient's tensors that a checkpoint of the donor fills.

        Args:
            there: the donor's tensors that are in it, by first address.
            left_out: those that are there and are not to be taken.

        Returns:
            Their first addresses. Counters that old files lack are left out.

        Raises:
            AddressError: the checkpoint lacks a tensor.
        """
        found, wanted = [], []
        for address, pairs in self.parts.items():
            lacking = [pair for pair in pairs if pair.donor and pair.donor not in there]
            wanted += [
                pair.donor
                for pair in lacking
                if pair.role != "buffer" and pair.donor not in left_out
            ]
            if not lacking:
                found.append(address)
        if wanted:
            every = dict.fromkeys(wanted)
            raise AddressError(
                f"the checkpoint lacks {len(every)} of {len(self.read)} tensors that belong into "
                "the recipient",
                where=wanted[0],
                expected=f"all tensors of {self.donor.title}",
                found=", ".join([*every][:_SHOWN]) + (", ..." if len(every) > _SHOWN else ""),
                fix="surgery.align(donor, recipient) with the model that the checkpoint was saved "
                "from as the donor",
            )
        return tuple(found)

    def convert(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint of the donor in the recipient's names and shapes.

        ``surgery.load_weights(recipient, file, rename=correspondence)`` does it on the way.

        Args:
            tensors: the donor's tensors by name, as ``state_dict`` gives them; prefixes of
                wrappers before the names do no harm.

        Returns:
            The recipient's tensors by name, those that the donor fills; packed, cut and reshaped
            as the recipient has them.

        Raises:
            AddressError: a tensor is missing.
            PlanError: a tensor has another shape than the donor's.
        """
        names = self.sources(describe(tensors))
        return {
            address: self.assemble(address, lambda first: tensors[names[first]].detach())
            for address in self.given(names)
        }

    def assemble(self, address: str, read: Read) -> torch.Tensor:
        """The values of one of the recipient's tensors.

        Args:
            address: its first address.
            read: gives the donor's tensors by first address.

        Returns:
            The donor's tensor itself where it fits as it is, else a new one. Numbers of it that
            no operation reads (the middle of a bias that is set to zero) are zeros.

        Raises:
            PlanError: a tensor has another shape than the donor's.
        """
        pairs, shape = self.parts[address], self.recipient.shapes[address]
        if address in self.straight:
            return self._checked(self.straight[address], read)
        sources = [self._checked(pair.donor, read) if pair.donor else None for pair in pairs]
        some = next((source for source in sources if source is not None), None)
        if some is None:
            # All zeros: of the form that the donor's tensors have.
            some = read(next(iter(self.straight.values()), next(iter(self.read))))
        made = torch.zeros(shape, dtype=some.dtype, device=some.device)
        with torch.no_grad():
            for pair, source in zip(pairs, sources, strict=True):
                if source is not None:
                    place = pair.ours.of(made)
                    place.copy_(pair.theirs.of(source.contiguous()).reshape(place.shape))
        return made

    def _checked(self, address: str, read: Read) -> torch.Tensor:
        """One of the donor's tensors, of its shape."""
        tensor = read(address)
        if tuple(tensor.shape) != self.donor.shapes[address]:
            raise PlanError(
                "a tensor has another shape than the donor that was aligned",
                where=address,
                expected=f"{self.donor.shapes[address]}, as in {self.donor.title}",
                found=str(tuple(tensor.shape)),
                fix="align the model that the checkpoint was saved from: "
                "surgery.align(donor, recipient)",
            )
        return tensor

    def inverse(self) -> Correspondence:
        """The same from the recipient to the donor."""
        return replace(
            self,
            donor=self.recipient,
            recipient=self.donor,
            pairs=tuple(
                TensorPair(p.recipient, p.donor, p.ours, p.theirs, p.role) for p in self.pairs
            ),
            reasons=(self.reasons[1], self.reasons[0]),
            differences=tuple(
                Distinction(d.recipient, d.donor, d.operation, d.name, d.ours, d.theirs)
                for d in self.differences
            ),
        )


def form_of(title: str, index: tree.Index, used: Mapping[str, int]) -> Form:
    """What a correspondence keeps of a model.

    Args:
        title: what to call it.
        index: its tensors.
        used: how many numbers of each tensor belong to operations.
    """
    entries = list(index.of_kind("parameter", "buffer"))
    passing = {
        tree.join(address, name)
        for module, addresses in index.modules.values()
        for name in module._non_persistent_buffers_set
        for address in addresses
    }
    return Form(
        title,
        {entry.address: tuple(entry.tensor.shape) for entry in entries},
        {a: entry.address for entry in entries for a in entry.addresses if a not in passing},
        used,
        tuple(e.address for e in entries if e.kind == "buffer" and e.address not in used),
    )


def correspondence_of(
    alignment: Alignment, titles: tuple[str, str], indexes: tuple[tree.Index, tree.Index]
) -> Correspondence:
    """Say of an alignment of graphs which tensors it pairs.

    Args:
        alignment: of the donor's graph and the recipient's.
        titles: what to call the models.
        indexes: their tensors.
    """
    found = _Pairing(alignment)
    beside = list(_beside(found.norms, indexes))
    state = (
        alignment.one.tensors | {pair.donor: pair.theirs.numel for pair in beside},
        alignment.other.tensors | {pair.recipient: pair.ours.numel for pair in beside},
    )
    forms = [
        form_of(title, index, used)
        for title, index, used in zip(titles, indexes, state, strict=True)
    ]
    return Correspondence(
        forms[0],
        forms[1],
        (*found.pairs, *beside),
        found.reasons,
        tuple(dict.fromkeys((*distinctions(alignment), *tables_apart(alignment, indexes)))),
        len(alignment.open),
        alignment.complete,
    )


class _Pairing:
    """The tensors of aligned cells, slot by slot."""

    def __init__(self, alignment: Alignment) -> None:
        self.pairs: list[TensorPair] = []
        self.norms: list[tuple[str, str]] = []
        self.reasons: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self.given: dict[Piece, dict[Piece, None]] = {}
        self.idle: set[Piece] = set()
        for a, b in alignment.pairs:
            self.add(alignment.one.cells[a], alignment.other.cells[b])

    def add(self, donor: Cell, recipient: Cell) -> None:
        """Pair the slots of two cells."""
        theirs = {slot.role: slot for slot in donor.slots}
        if any(
            slot.role == "weight" and slot.shape != theirs["weight"].shape
            for slot in recipient.slots
            if "weight" in theirs
        ):
            self.apart(theirs, recipient)
            return
        for ours in recipient.slots:
            slot = theirs.pop(ours.role, None)
            if slot is not None and slot.shape != ours.shape:
                self.mismatch(slot, ours)
            elif slot is not None:
                self.pair(slot.piece, ours.piece, f"{recipient.kind} {ours.role}")
                if ours.role == "mean":
                    self.norms.append((slot.piece.address, ours.piece.address))
            elif ours.role.startswith("bias") and ours.piece.address:
                self.pair(_zeros(ours), ours.piece, f"{recipient.kind} {ours.role}")
            else:
                self.reasons[1][ours.piece.address] = "the donor's operation has none"
        for slot in theirs.values():
            if slot.role.startswith("bias"):
                self.pair(slot.piece, _zeros(slot), f"{recipient.kind} {slot.role}")
            else:
                self.reasons[0][slot.piece.address] = "the recipient's operation has none"

    def apart(self, theirs: dict[str, Slot], recipient: Cell) -> None:
        """Two operations of different sizes: what stands beside the weight belongs to it."""
        beside = "the weight beside it has another shape"
        for slot in theirs.values():
            self.reasons[0][slot.piece.address] = beside
        for ours in recipient.slots:
            self.reasons[1][ours.piece.address] = beside
            if ours.role in theirs and theirs[ours.role].shape != ours.shape:
                self.mismatch(theirs[ours.role], ours)

    def mismatch(self, theirs: Slot, ours: Slot) -> None:
        """Two tensors in one place, of different shapes."""
        self.reasons[0][theirs.piece.address] = f"{ours.piece.address} is {ours.shape}"
        self.reasons[1][ours.piece.address] = f"{theirs.piece.address} is {theirs.shape}"

    def pair(self, theirs: Piece, ours: Piece, role: str) -> None:
        """Numbers and their place, each place once."""
        if not ours.address:
            # Beside it may stand others of the same tensor, which do have a place.
            if theirs.address and theirs not in self.idle:
                self.idle.add(theirs)
                self.reasons[0][theirs.address] = _ZEROS
                self.pairs.append(TensorPair(theirs.address, "", theirs, ours, role))
            return
        if not theirs.address:
            self.reasons[1][ours.address] = _ZEROS
        given = self.given.setdefault(ours, {})
        if theirs not in given:
            given[theirs] = None
            self.pairs.append(TensorPair(theirs.address, ours.address, theirs, ours, role))
        if len(given) > 1:
            names = " and ".join(piece.address or "zeros" for piece in given)
            self.reasons[1][ours.address] = f"{names} both belong there: it is shared"


def _beside(
    norms: list[tuple[str, str]], indexes: tuple[tree.Index, tree.Index]
) -> Iterator[TensorPair]:
    """Buffers that stand beside the statistics of a normalisation: they go along."""
    here = {a: e for e in indexes[1].of_kind("buffer") for a in e.addresses}
    there = {a: e for e in indexes[0].of_kind("buffer") for a in e.addresses}
    inside: dict[str, list[str]] = {}
    for address in here:
        inside.setdefault(tree.split(address)[0], []).append(address)
    stated = {address for pair in norms for address in pair}
    for donor, recipient in dict.fromkeys(norms):
        for address in inside.get(tree.split(recipient)[0], ()):
            twin = tree.join(tree.split(donor)[0], tree.split(address)[1])
            mine = here[address].tensor
            if address in stated or twin not in there or mine.is_floating_point():
                continue
            shape = tuple(mine.shape)
            if tuple(there[twin].tensor.shape) == shape:
                theirs, ours = (Piece(a, shape, contiguous(shape)) for a in (twin, address))
                yield TensorPair(twin, address, theirs, ours, "buffer")


def _zeros(slot: Slot) -> Piece:
    return Piece("", slot.piece.shape, contiguous(slot.piece.shape))


def _leftovers(form: Form, used: Container[str], reasons: Mapping[str, str]) -> Iterator[Leftover]:
    for address, shape in form.shapes.items():
        if address in form.constants or address in used:
            continue
        reason = "takes no part in the forward pass"
        if address in form.used:
            reason = "no operation of the other model stands in its place"
        yield Leftover(address, shape, reasons.get(address, reason))
