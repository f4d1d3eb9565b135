"""Run two models on random input, the one with the other's weights, and compare what comes out.

Neither model runs: stand-ins of them do, in double precision, twice. First with the donor's own
weights. They may hide a wrong place: a branch that a fresh scale closes, a signal that dies on the
way, statistics that nobody gathered. So both run again with random weights that carry signals
through; that they agree for these too says that they are the same function of their weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from surgery.graph.align import Alignment
from surgery.graph.example import Example
from surgery.graph.extras import Extra, extras
from surgery.graph.quiet import quiet
from surgery.graph.skeleton import Skeleton, build_skeleton, is_floating
from surgery.operations.align import Twins, follow_all
from surgery.operations.correspondence import Correspondence
from surgery.operations.evidence import CAST, ROUNDING, Gap, Proof
from surgery.operations.influence import activations, silent
from surgery.operations.meeting import met, watched
from surgery.operations.planting import Planting
from surgery.operations.seams import Common, common_part, regions_of
from surgery.operations.steps import OutOfStepError, Steps, turned
from surgery.operations.tables import ROUNDED
from surgery.operations.trial import (
    GAINS,
    Results,
    Settling,
    Stepping,
    convert,
    draw_inputs,
    fill,
    free_memory,
    randomise,
    replaced,
    run,
    vacate,
    workplace,
)
from surgery.operations.uncompared import beyond, last_of, reached, returned
from surgery.operations.unfelt import Pass, unfelt

_SEED = 2147483659
# How much an input is changed to see whether rounding alone would explain a difference.
_NUDGE = 1e-12
_REFUSALS = (OutOfStepError, RuntimeError, ValueError, AssertionError)


def prove(
    twins: Twins,
    correspondence: Correspondence,
    alignment: Alignment,
    prepare: Callable[[nn.Module], None],
) -> Proof | None:
    """Compare two models on random input, the recipient with the donor's weights.

    Where what differs stands in front of something common, both go on behind it with one value.
    If they do not run with it, they are compared as far as they are the same from the inputs on.

    Args:
        twins: the models and what they take.
        correspondence: which weight goes where.
        alignment: of their graphs.
        prepare: changes the recipient's stand-in first: settings that are to be the donor's.

    Returns:
        What came out; None where the two have no result in common.
    """
    trial = partial(_proof, twins, correspondence, alignment, prepare)
    with quiet():
        try:
            return trial(None)
        except RuntimeError as error:
            # Code that casts to float32 itself does not go with doubles.
            try:
                return trial(torch.float32)
            except RuntimeError:
                raise error from None


def _proof(
    twins: Twins,
    correspondence: Correspondence,
    alignment: Alignment,
    prepare: Callable[[nn.Module], None],
    dtype: torch.dtype | None,
) -> Proof | None:
    """The same in one precision; None for the best that memory allows."""
    for joins in (True, False):
        common = common_part(alignment, correspondence, joins=joins)
        if not common.seams:
            break
        try:
            found = _Trial(twins, correspondence, alignment, prepare, common, dtype).proof()
        except _REFUSALS:
            continue  # what comes out is a finding; that the user's layers refuse it is none
        if found is not None:
            return found
    plain = common_part(alignment, correspondence, seams=False)
    return _Trial(twins, correspondence, alignment, prepare, plain, dtype).proof()


class _Pair(NamedTuple):
    """Numbers of both models that are to be the same.

    Attributes:
        theirs: finds the donor's among its results.
        ours: finds the recipient's among its results.
        name: the recipient's name of them.
        numbers: the recipient's, in the donor's layout.
        region: which part of what is common they are from.
    """

    theirs: Callable[[Results], torch.Tensor]
    ours: Callable[[Results], torch.Tensor]
    name: str
    numbers: torch.Tensor
    region: int


class _Trial:
    """Two models side by side."""

    def __init__(
        self,
        twins: Twins,
        correspondence: Correspondence,
        alignment: Alignment,
        prepare: Callable[[nn.Module], None],
        common: Common,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.twins, self.correspondence, self.alignment = twins, correspondence, alignment
        self.prepare, self.common = prepare, common
        best, self.device = workplace(twins.models, correspondence.straight)
        self.dtype = dtype or best
        self.planting = Planting.of(alignment, common) if common.seams else None
        # Which modules return what is wanted is known from the inputs on; else operations tell.
        self.watched = watched(alignment, common.cells) if self.planting is None else []
        self.generator = torch.Generator().manual_seed(_SEED)
        self.silent: tuple[str, ...] | None = ()
        self.unfelt, self.untold = list[Extra](), list[Extra]()
        self.cast = any(each.name == ROUNDED for each in correspondence.differences)
        # The nodes of both whose results are compared.
        self.nodes: tuple[set[int], set[int]] = set(), set()

    def proof(self) -> Proof | None:
        """What comes out of both, with the donor's weights and with random ones."""
        own = self.compared(0)
        if own is None:
            return None
        gap, names, common = own
        random = gap
        for gain in GAINS:
            found = self.compared(gain)
            random = gap if found is None else found[0]
            if random.alive:
                break
        seams = self.planting.titles if self.planting is not None else ()
        return Proof(
            gap,
            random,
            self.dtype,
            names,
            common,
            self.silent,
            seams,
            self.beyond(),
            self.cast,
            tuple(self.unfelt),
            tuple(self.untold),
        )

    def covered(self) -> tuple[set[int], set[int]]:
        """The nodes of both that lead to what is compared."""
        begun, planting = (frozenset[int](), frozenset[int]()), self.planting
        if planting is not None:
            begun = planting.cut | planting.own.keys(), frozenset(planting.given)
            self.nodes[0].update(planting.own.values())
        return (
            reached(self.twins.graphs[0], self.nodes[0], begun[0]),
            reached(self.twins.graphs[1], self.nodes[1], begun[1]),
        )

    def beyond(self) -> tuple[str, ...]:
        """What was not compared, and differs."""
        found = self.correspondence
        listed = (
            {each.address for each in found.donor_only},
            {each.address for each in found.recipient_only},
        )
        return beyond(self.alignment, self.covered(), listed)

    def note(self, donor: int | None, recipient: int | None) -> None:
        """Keep which nodes are compared."""
        self.nodes[0].update(() if donor is None else (donor,))
        self.nodes[1].update(() if recipient is None else (recipient,))

    def compared(self, gain: float) -> tuple[Gap, tuple[str, ...], bool] | None:
        """How far apart both are, on what, and whether that is in the middle.

        Args:
            gain: of random weights; zero for the donor's own.
        """
        random = gain > 0
        donor, recipient = (build_skeleton(model, "real") for model in self.twins.models)
        follow_all(donor.model)
        follow_all(recipient.model)
        convert(donor.model, self.dtype, self.device, copy=random)
        # What eval mode keeps of weights between two passes, train mode forgets.
        donor.model.train()
        if random:
            randomise(donor.model, self.alignment.one, self.generator, gain)
            vacate(donor.model, self.correspondence)
        inputs = self.inputs()
        there, planting = [there for there, _ in self.watched], self.planting
        running = self.execution(donor, inputs[0], settling=random)
        first = run(donor, inputs[0], there, running)
        fill(recipient.model, donor.model, self.correspondence, self.dtype, self.device)
        self.prepare(recipient.model)
        steps = None
        if planting is not None:
            planting.substitute(donor, recipient)
            steps = planting.of_recipient(first.nodes)
        following = Stepping(recipient, steps)
        second = run(recipient, inputs[1], [here for _, here in self.watched], following)
        self.cast |= running.cast or following.cast
        pairs, common = self.paired(first, second)
        if not pairs:
            return None
        other = self.inputs()[0] if random else replaced(inputs[0], _nudged)
        gap = self.worst(
            pairs,
            first,
            lambda: run(donor, other, there, self.execution(donor, other)),
            random=random,
        )
        if random and gap.alive:
            if gap.difference <= max(ROUNDING[self.dtype], CAST) * gap.change:
                self.weigh((donor, recipient), inputs, pairs, first)
            self.listen(donor, inputs[0], [pair.theirs for pair in pairs], first)
        return gap, tuple(pair.name for pair in pairs), common

    def execution(self, donor: Skeleton, example: Example, *, settling: bool = False) -> Stepping:
        """What runs the donor."""
        steps = self.planting.of_donor(example) if self.planting is not None else None
        return Settling(donor, self.generator, steps) if settling else Stepping(donor, steps)

    def worst(
        self, pairs: list[_Pair], first: Results, again: Callable[[], Results], *, random: bool
    ) -> Gap:
        """How far apart the two are in the region of which the numbers say the least for them.

        Args:
            pairs: what is compared.
            first: the donor's results.
            again: runs the donor on another input, or on nearly the same.
            random: whether the weights are, and the input is another.
        """
        regions: dict[int, list[_Pair]] = {}
        for pair in pairs:
            regions.setdefault(pair.region, []).append(pair)
        gaps = {}
        for region, those in regions.items():
            difference = _worst([(pair.theirs(first), pair.numbers) for pair in those])
            gaps[region] = Gap(difference, max(_largest(pair.theirs(first)) for pair in those))
        rounding = ROUNDING[self.dtype]
        if random or any(g.finite and g.difference > rounding * g.scale for g in gaps.values()):
            second = again()
            for region, those in regions.items():
                moved = _worst([(pair.theirs(first), pair.theirs(second)) for pair in those])
                gaps[region] = replace(gaps[region], change=moved)
        return max(gaps.values(), key=lambda gap: _badness(gap, rounding, random=random))

    def weigh(
        self,
        skeletons: tuple[Skeleton, Skeleton],
        examples: tuple[Example, Example],
        pairs: list[_Pair],
        first: Results,
    ) -> None:
        """Find the operations of one model alone that nothing of what was compared depends on."""
        planting, graphs, covered = self.planting, self.twins.graphs, self.covered()
        every = [each for each in extras(self.alignment) if each.exit in covered[each.side]]

        def steps(side: int) -> Steps:
            if planting is None:
                return Steps(graphs[side], ())
            given = planting.of_recipient(first.nodes) if side else None
            return given or planting.of_donor(examples[0])

        def chosen(results: Results, side: int) -> list[torch.Tensor]:
            return [(pair.ours if side else pair.theirs)(results) for pair in pairs]

        rounding = max(ROUNDING[self.dtype], CAST if self.cast else 0)
        self.unfelt, self.untold = [], []
        for side, names in enumerate(zip(*self.watched, strict=True) if self.watched else ((), ())):
            room = activations(graphs[side]) <= free_memory(self.device) // 3
            model = Pass(
                skeletons[side],
                graphs[side],
                examples[side],
                names,
                partial(chosen, side=side),
                partial(steps, side),
                rounding,
                room,
            )
            found, open_ = unfelt(model, [each for each in every if each.side == side])
            self.unfelt += found
            self.untold += open_

    def listen(
        self,
        donor: Skeleton,
        example: Example,
        readers: list[Callable[[Results], torch.Tensor]],
        first: Results,
    ) -> None:
        """Note the tensors that have no say in what was compared, where memory allows."""
        self.silent = None
        if activations(self.twins.graphs[0]) > free_memory(self.device) // 3:
            return
        there, planting = [there for there, _ in self.watched], self.planting

        def chosen(results: Results) -> list[torch.Tensor]:
            return [read(results) for read in readers]

        def steps() -> Steps | None:
            return planting.of_donor(example, first.nodes) if planting is not None else None

        side = self.alignment.one
        found = silent(donor, side, example, there, chosen, self.generator, steps)
        gone = {pair.donor for pairs in self.correspondence.parts.values() for pair in pairs}
        self.silent = found and tuple(address for address in found if address in gone)

    def inputs(self) -> tuple[Example, Example]:
        """Another random input, in the forms that both take."""
        return draw_inputs(self.twins, self.dtype, self.device, self.generator)

    def paired(self, first: Results, second: Results) -> tuple[list[_Pair], bool]:
        """What both have in common: outputs, else results in the middle."""
        cells = self.common.cells
        regions = regions_of(self.alignment, self.common)
        found = list(met(self.alignment, cells, first.outputs, second.outputs))
        pairs = [
            _Pair(_output(path), _output(name), name, two, regions[cell])
            for path, name, two, cell in found
        ]
        one, other = self.twins.graphs
        for path, name, _, _ in found:
            self.note(returned(one, path), returned(other, name))
        if self.planting is not None:
            done = {cell for _, _, _, cell in found}
            for end in self.planting.ends:
                if end.cell not in done:
                    self.note(end.donor, end.recipient)
            return pairs + [
                _Pair(
                    _node(there),
                    _node(here),
                    name,
                    _laid(first.nodes[there], second.nodes[here]),
                    regions[cell],
                )
                for there, here, name, cell in map(astuple, self.planting.ends)
                if cell not in done
            ], not pairs
        if pairs:
            return pairs, False
        for there, here in self.watched:
            self.note(last_of(one, there), last_of(other, here))
        return [
            _Pair(
                _module(there),
                _module(here),
                here,
                _laid(first.modules[there], second.modules[here]),
                -1,
            )
            for there, here in self.watched
            if there in first.modules and here in second.modules
        ], True


def _output(path: str) -> Callable[[Results], torch.Tensor]:
    return lambda results: results.outputs[path]


def _module(address: str) -> Callable[[Results], torch.Tensor]:
    return lambda results: results.modules[address]


def _node(number: int) -> Callable[[Results], torch.Tensor]:
    return lambda results: results.nodes[number]


def _badness(gap: Gap, rounding: float, *, random: bool) -> float:
    """How little the numbers of a region speak for it."""
    if not gap.finite or (random and not gap.alive):
        return math.inf
    if random:
        return gap.difference / gap.change
    if gap.difference <= rounding * gap.scale:
        return 0.0
    # What rounding alone explains is better than what nothing does.
    return 1.0 if gap.chaotic else 2.0 + gap.difference


def _laid(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """A result in the middle in the layout of the other model's, also where all sizes are one.

    Moves behind it are not part of it; an output has to be the output as it is.
    """
    forms = [two, *(form for form in turned(two) if form.shape == one.shape)]
    return min(forms, key=lambda form: _gap(one, form)) if len(forms) > 1 else two


def _nudged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * (1 + _NUDGE) if is_floating(tensor.dtype) else tensor


def _worst(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    gaps = [_gap(one, other) for one, other in pairs]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in the layout of the one or of the other.

    Where no layout fits, as with windows, numbers are sorted, if possible those of each feature
    by themselves: what is at another place looks equal then, what is another feature does not.
    """
    if one.numel() != other.numel():
        return math.inf
    if one.shape != other.shape:
        forms = [(one, form) for form in turned(other) if form.shape == one.shape]
        forms += [(form, other) for form in turned(one) if form.shape == other.shape]
        rows = [(_rows(one, a), _rows(other, b)) for a, b in itertools.product((1, -1), repeat=2)]
        forms = forms or [pair for pair in rows if pair[0].shape == pair[1].shape]
        forms = forms or [(one.flatten().sort().values, other.flatten().sort().values)]
        return min(_gap(*pair) for pair in forms)
    return float((one - other).abs().max()) if one.numel() else 0.0


def _rows(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The numbers of each feature in order, features on an axis."""
    if tensor.dim() < 2:
        return tensor.flatten()
    return tensor.movedim(axis, 0).flatten(1).sort().values


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
