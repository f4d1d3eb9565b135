"""Find an example input for a model that came without one.

The layers that could come first and the signature of ``forward`` say what the arguments may look
like (``forms``); the forward pass itself says whether they fit. A failed pass is not wasted: how
far it got tells which guess is nearer, and the numbers in its message tell which size is wrong
and where it must go (224 gave 44944 features where 400 were wanted: 32).
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from surgery import tree
from surgery.errors import ExampleError, SurgeryError
from surgery.graph import arguments
from surgery.graph.arguments import Slot
from surgery.graph.candidate import Candidate, Failure
from surgery.graph.example import Example
from surgery.graph.forms import (
    BATCH,
    IMAGE,
    LADDERS,
    SIGNAL,
    Form,
    Size,
    entries,
    ladder,
    module_keys,
    size_hints,
)
from surgery.graph.watch import watch

Attempt: TypeAlias = Callable[[Example, bool], "Exception | None"]

# The most of each: forward passes by number of modules, sizes along one axis, forms an argument.
_PASSES = (60, 400, 24_000)
_SIZES, _FORMS, _COMBINATIONS = 10, 24, 120
_CEILING = {IMAGE: 2048, SIGNAL: 1 << 17}


class _SpentError(Exception):
    """As many forward passes were tried as are worth it."""


def infer_example(model: nn.Module, attempt: Attempt) -> Example:
    """Find arguments with which the forward pass of a model runs.

    Args:
        model: any module. It is looked at and not touched.
        attempt: runs the forward pass without side effects (on meta stand-ins), with the root in
            train mode if the second argument is true, and returns None or what went wrong.

    Returns:
        An example with a batch of 2 (1 where the model refuses 2). Floating-point and complex
        tensors are on the meta device, in the dtype of the layer that takes them; integer tensors
        are real and valid. It runs in eval mode, and where one was found in train mode as well;
        ``Example.train`` holds another where train mode needs another.

    Raises:
        ExampleError: nothing that was tried runs; the error shows how to pass an example.

    Example:
        >>> import copy, torch
        >>> from torch import nn
        >>> from surgery.graph.infer import infer_example
        >>> def attempt(example, train):
        ...     try:
        ...         copy.deepcopy(model).to("meta").train(train)(*example.args)
        ...     except RuntimeError as error:
        ...         return error
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
        >>> infer_example(model, attempt).args[0].shape
        torch.Size([2, 1, 28, 28])
    """
    search = _Search(tree.unwrap(model), attempt)
    try:
        found = search.find()
    except _SpentError:
        found = None
    found = found or search.spare
    if found is None:
        raise _error(search)
    example = found.example()
    other = search.for_train(found)
    if other is None:
        return example
    if search.runs(other, train=False):
        return other.example()
    return dataclasses.replace(example, train=other.example())


class _Search:
    """The forward passes tried so far, and what was learnt from them."""

    def __init__(self, model: nn.Module, attempt: Attempt) -> None:
        self.model = model
        self.attempt = attempt
        self.parameters = arguments.parameters_of(model)
        self.entries = entries(model)
        self.hints = size_hints(model)
        self.keys = module_keys(model)
        fewest, most, work = _PASSES
        modules = sum(1 for _ in model.modules())
        self.left = max(fewest, min(most, work // (modules + 1)))
        self.tried: dict[tuple[Candidate, bool], Failure | None] = {}
        self.learnt: dict[str, Size] = {}
        self.spare: Candidate | None = None

    def run(self, candidate: Candidate, train: bool = False) -> Failure | None:
        """One forward pass, or what is known of it already."""
        key = (candidate, train)
        if key not in self.tried:
            if self.left <= 0:
                raise _SpentError
            self.left -= 1
            self.tried[key] = self._run(candidate, train)
        return self.tried[key]

    def runs(self, candidate: Candidate, train: bool) -> bool:
        """Whether a guess runs, as far as the number of passes allows to know."""
        try:
            return self.run(candidate, train) is None
        except _SpentError:
            return False

    def _run(self, candidate: Candidate, train: bool) -> Failure | None:
        batch = dict(candidate.sizes).get(BATCH)
        with watch() as seen:
            error = _cause(self.attempt(candidate.example(), train))
        progress = seen.begun + seen.finished
        if error is not None:
            text = f"{type(error).__name__}: {str(error).strip()}"
            missing = error.args[0] if isinstance(error, KeyError) and error.args else ""
            missing = missing if isinstance(missing, str) else ""
        elif seen.limit is not None:
            text = f"index {seen.largest} is outside a table of {seen.limit} rows"
            missing = ""
        elif isinstance(batch, int) and not seen.keeps_batch(batch):
            # A view by a fixed number of features turns a wrong size into more rows.
            if self.spare is None and not train:
                self.spare = candidate
            text, missing = f"a batch of {batch} came out as {seen.rows}", ""
            return Failure(text, progress, "", batch=True)
        else:
            return None
        return Failure(text, progress, seen.where, missing, limit=seen.limit)

    def find(self) -> Candidate | None:
        """A guess that runs in eval mode."""
        for slots in arguments.calls(self.parameters):
            found = self._fill(slots, self._options(slots))
            if found is not None:
                return found
        return None

    def _discover_entries(self, slots: Sequence[Slot]) -> Candidate | None:
        """For a forward that takes one dict: its keys, from what it misses."""
        if len(slots) != 1 or slots[0].place != "positional":
            return None
        failure = self.run(Candidate(tuple(slots), (arguments.nothing(),), ()))
        if failure is None or not failure.missing:
            return None
        entry = (Slot(failure.missing, "entry"),)
        return self._fill(entry, self._options(entry))

    def _options(self, slots: Sequence[Slot]) -> list[tuple[Form, ...]]:
        return [
            arguments.options(slot, index, len(slots), self.entries, self.keys)[:_FORMS]
            for index, slot in enumerate(slots)
        ]

    def _candidate(self, slots: Sequence[Slot], forms: Sequence[Form]) -> Candidate:
        axes = dict.fromkeys(axis for form in forms for axis in form.axes)
        sizes = tuple((axis, self.learnt.get(axis, ladder(axis, self.hints)[0])) for axis in axes)
        return Candidate(tuple(slots), tuple(forms), sizes)

    def _fill(self, slots: Sequence[Slot], options: list[tuple[Form, ...]]) -> Candidate | None:
        """A guess for these slots that runs: first the forms, then the sizes."""
        best: tuple[int, Sequence[Form]] = (-1, ())
        failed: list[tuple[int, int, Candidate, Failure]] = []
        combinations = arguments.combinations(options, lambda: best[1])
        for order, forms in enumerate(itertools.islice(combinations, _COMBINATIONS)):
            candidate = self._candidate(slots, forms)
            failure = self.run(candidate)
            if failure is None:
                return candidate
            found = self._with_more(candidate, failure, try_others=not order)
            if found is None and self._worth_refining(failure, order, best[0]):
                found = self._refine(candidate, failure)
            if found is None and order == 5:
                found = self._discover_entries(slots)
            if found is not None:
                return found
            failed.append((-failure.progress, order, candidate, failure))
            if failure.progress > best[0]:
                best = (failure.progress, forms)
        for _, _, candidate, failure in heapq.nsmallest(_FORMS, failed):
            found = self._refine(candidate, failure)
            if found is not None:
                return found
        return None

    def _worth_refining(self, failure: Failure, order: int, best: int) -> bool:
        if failure.batch:
            return False
        own_check = failure.text.startswith(("ValueError", "AssertionError"))
        return failure.progress > max(best, 1) or (not order and own_check)

    def _with_more(
        self, candidate: Candidate, failure: Failure, try_others: bool = False
    ) -> Candidate | None:
        """The same with one more argument: what the message asks for, or an optional one."""
        slots = candidate.slots
        more = self._missing(slots, failure)
        if more is not None:
            return self._fill(more, self._options(more))
        for extra in arguments.optional_inputs(self.parameters, slots) if try_others else ():
            more = (*slots, extra)
            options = self._options(more)
            forms = (*candidate.forms, *(form for form in options[-1][:1]))
            result = self.run(self._candidate(more, forms))
            further = result is None or result.progress > failure.progress
            if further and (result is None or result.skeleton != failure.skeleton):
                return self._fill(more, options)
        return None

    def _missing(self, slots: Sequence[Slot], failure: Failure) -> tuple[Slot, ...] | None:
        """The slots and one more, if the message asks for an argument that was left out."""
        have = {slot.name for slot in slots}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        if failure.missing and failure.missing not in have:
            if slots and slots[0].place == "entry":
                return (*slots, Slot(failure.missing, "entry"))
            if takes_any:
                return (*slots, Slot(failure.missing, "keyword"))
        if any(p.kind is p.VAR_POSITIONAL for p in self.parameters) and len(slots) == 1:
            short = re.search(
                r"missing (\d) required positional|expected (\d), got 1", failure.text
            )
            if short is not None:
                count = int(short[1]) + 1 if short[1] else int(short[2])
                return tuple(Slot(f"{slots[0].name} {index}") for index in range(count))
        asked = arguments.optional_in(failure.text, self.parameters, slots)
        return None if asked is None else (*slots, asked)

    def _refine(
        self, candidate: Candidate, failure: Failure, train: bool = False
    ) -> Candidate | None:
        """The same guess with other sizes, as long as each change gets the pass further."""
        for _ in range(6):
            if failure.limit is not None and candidate.limit is None:
                candidate = dataclasses.replace(candidate, limit=failure.limit)
                found = candidate, self.run(candidate, train)
            else:
                # Another batch is the last thing to try.
                axes = sorted((axis for axis, _ in candidate.sizes), key=lambda axis: axis == BATCH)
                changes = (self._along(axis, candidate, failure, train) for axis in axes)
                better = next((change for change in changes if change is not None), None)
                if better is None:
                    return None
                found = better
            candidate, next_failure = found
            if next_failure is None:
                return candidate
            failure = next_failure
            if not train:
                self.learnt.update(pair for pair in candidate.sizes if pair[0] != BATCH)
                filled = self._with_more(candidate, failure)
                if filled is not None:
                    return filled
        return None

    def _along(
        self, axis: str, candidate: Candidate, failure: Failure, train: bool
    ) -> tuple[Candidate, Failure | None] | None:
        """A size along one axis with which the pass ends well, or gets further."""
        here = dict(candidate.sizes)[axis]
        known: dict[Size, Failure] = {here: failure}
        named = [n for n in failure.numbers if 0 < n <= _CEILING.get(axis, 4096)]
        free = axis != BATCH and not axis.startswith("channels")
        sizes: list[Size] = [*named] if free and here in failure.numbers else []
        sizes += ladder(axis, self.hints)
        aimed: set[tuple[int, int]] = set()
        for size in itertools.islice(dict.fromkeys(sizes), _SIZES):
            if size == here:
                continue
            result = self.run(candidate.at(axis, size), train)
            if result is None or result.progress > failure.progress:
                return candidate.at(axis, size), result
            if result.text == failure.text:
                return None  # this axis has nothing to do with it
            known[size] = result
            for aim in _aims(failure, result) if free else ():
                if aim not in aimed and len(aimed) < 4:
                    aimed.add(aim)
                    found = self._bisect(axis, candidate, known, aim, train)
                    if found is not None:
                        return found
        return None

    def _bisect(
        self,
        axis: str,
        candidate: Candidate,
        known: Mapping[Size, Failure],
        aim: tuple[int, int],
        train: bool,
    ) -> tuple[Candidate, Failure | None] | None:
        """Move the number at a position of the message to its target; it grows with the size."""
        position, target = aim
        first = known[next(iter(known))]
        low, high = 0, None
        for size, failure in known.items():
            if isinstance(size, int) and failure.skeleton == first.skeleton:
                if failure.numbers[position] < target:
                    low = max(low, size)
                elif high is None or size < high:
                    high = size
        for _ in range(16):
            middle = _between(axis, low, high)
            if middle is None:
                return None
            result = self.run(candidate.at(axis, middle), train)
            if result is None or result.progress > first.progress:
                return candidate.at(axis, middle), result
            # Another message: so small that the pass did not even get there.
            if result.skeleton != first.skeleton or result.numbers[position] < target:
                low = middle
            else:
                high = middle
        return None

    def for_train(self, found: Candidate) -> Candidate | None:
        """The guess, or one with other sizes, that runs in train mode too."""
        self.left = min(max(self.left, 8), 24)
        try:
            failure = self.run(found, train=True)
            return found if failure is None else self._refine(found, failure, train=True)
        except _SpentError:
            return None


def _cause(error: Exception | None) -> Exception | None:
    """What forward itself raised, and not how the attempt reported it."""
    while isinstance(error, SurgeryError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _aims(first: Failure, second: Failure) -> Iterator[tuple[int, int]]:
    """Which number of the message moves with the size, and where it may have to go.

    Pairs of its position and a target: numbers that stay, the nearest first, and their products
    with the batch (a view by features counts all rows).
    """
    if first.skeleton != second.skeleton:
        return
    pairs = list(enumerate(zip(first.numbers, second.numbers, strict=True)))
    moving = [index for index, (one, two) in pairs if one != two]
    staying = [(index, one) for index, (one, two) in pairs if one == two]
    places = _places(first.text)
    for index in moving:
        nearest = sorted(
            staying,
            key=lambda item: (
                places[item[0]] is None or places[item[0]] != places[index],
                abs(item[0] - index),
                item[0] < index,
            ),
        )
        for _, target in nearest[:3]:
            yield index, target
        if "invalid for input of size" in first.text:
            yield from ((index, 2 * target) for _, target in nearest[:2])


def _places(text: str) -> list[int | None]:
    """For every number of a message its place in the shape it is part of, counted from the end."""
    places: list[int | None] = []
    for part in re.split(r"(\[[\d, ]+\])", text):
        count = len(re.findall(r"\d+", part))
        shape = part.startswith("[")
        places += [index - count if shape else None for index in range(count)]
    return places


def _between(axis: str, low: int, high: int | None) -> int | None:
    """A size strictly between two: an ordinary one where there is one."""
    if high is None:
        above = max(2 * low, 2)
        return above if above <= _CEILING.get(axis, 4096) else None
    ordinary = sorted(s for s in LADDERS.get(axis, ()) if low < s < high)
    if ordinary:
        return ordinary[len(ordinary) // 2]
    return (low + high) // 2 if high - low > 1 else None


def _error(search: _Search) -> ExampleError:
    model = search.model
    tried = [(c, f) for (c, train), f in search.tried.items() if f is not None and not train]
    told: list[str] = []
    code = "torch.zeros(2, 3, 224, 224)"
    if tried:
        furthest = max(tried, key=lambda item: item[1].progress)
        for candidate, failure in dict.fromkeys((tried[0], furthest)):
            place = f"\n  in {failure.where}" if failure.where else ""
            told.append(f"{candidate.shown()}: {failure.text[:300]}{place}")
        code = furthest[0].as_code() or code
    more = len(tried) - len(told)
    told += [f"and {more} more"] if more > 0 else []
    signature = ", ".join(str(parameter) for parameter in search.parameters)
    return ExampleError(
        f"no example input could be inferred for {type(model).__name__}",
        where=f"forward({signature})",
        expected="an example, as nothing that was tried runs",
        found="\n".join(told) or "nothing to try: no layer says what the model takes",
        fix=f"pass your own, for instance surgery.record(model, example={code})",
    )
