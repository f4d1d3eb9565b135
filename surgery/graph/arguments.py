"""The arguments of a forward pass: which have to be given, and what each may look like."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from surgery.graph.forms import BATCH, EMPTY, IMAGE, LENGTH, SIGNAL, Entry, Form

Parameters = tuple[inspect.Parameter, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument to fill: of ``forward``, or an entry of the one dict that it takes."""

    name: str
    place: Literal["positional", "keyword", "entry"] = "positional"
    annotation: str = ""


def parameters_of(model: nn.Module) -> Parameters:
    """The parameters of a model's forward, also where an instance carries its own."""
    try:
        return tuple(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return (inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),)


def calls(parameters: Parameters) -> Iterator[tuple[Slot, ...]]:
    """Which arguments to fill: all required ones; where none is, the first optional one."""
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in named if p.default is p.empty]
    if required:
        yield tuple(slot_for(parameter) for parameter in required)
        return
    if named:
        yield (slot_for(named[0]),)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            for count in (1, 2, 3):
                yield tuple(Slot(f"{parameter.name}[{index}]") for index in range(count))
    if not named:
        yield ()


def slot_for(parameter: inspect.Parameter) -> Slot:
    """The slot of a named parameter; required ones are passed by position, others by name."""
    by_name = parameter.kind is parameter.KEYWORD_ONLY or (
        parameter.default is not parameter.empty and parameter.kind is not parameter.POSITIONAL_ONLY
    )
    return Slot(parameter.name, "keyword" if by_name else "positional", _annotation(parameter))


def _annotation(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    if kind is parameter.empty:
        return ""
    if isinstance(kind, str) or hasattr(kind, "__args__"):
        return str(kind)
    return getattr(kind, "__name__", str(kind))


def optional_in(text: str, parameters: Parameters, slots: Sequence[Slot]) -> Slot | None:
    """An optional parameter that a message names, and that was left out."""
    words = set(re.findall(r"\w+", text))
    if any(slot.name in words for slot in slots):  # one of several, and it is there
        return None
    for parameter in parameters:
        # A word as short as "x", or as common as "size", is no request.
        if parameter.name in words and "_" in parameter.name and parameter.default is None:
            return slot_for(parameter)
    return None


def optional_inputs(parameters: Parameters, slots: Sequence[Slot]) -> Iterator[Slot]:
    """Where all is optional: further parameters that by their names are inputs of their own."""
    if not all(slot.place == "keyword" for slot in slots):
        return
    have = {slot.name for slot in slots}
    found = 0
    for parameter in parameters:
        makers = [make for pattern, make in _HINTS if re.search(pattern, parameter.name)]
        wanted = makers[:1] and makers[0] in (_ids, _pictures, _signals)
        if wanted and parameter.default is None and parameter.name not in have and found < 3:
            found += 1
            yield slot_for(parameter)


def options(
    slot: Slot, index: int, count: int, entries: Sequence[Entry], keys: Sequence[str] = ()
) -> tuple[Form, ...]:
    """The forms an argument may have, most plausible first.

    Args:
        slot: the argument; its name and annotation are hints.
        index: its place among the arguments to fill.
        count: how many there are.
        entries: the layers that could take it.
        keys: what a text could choose between: the names in the model's dicts of modules.
    """
    texts = tuple(Form(fill="value", value=key) for key in keys[:8])
    if slot.annotation == "str" and texts:
        return texts
    scalar = _SCALARS.get(slot.annotation)
    if scalar is not None:
        return (Form(fill="value", value=scalar),)
    forms = _by_plausibility(_own_branch(index, count, entries), entries)
    found = list(_named(slot.name.lower(), forms))
    lists = list(_lists(forms, entries))
    as_list = re.search(r"\b(list|sequence|iterable|tuple)\b", slot.annotation.lower())
    found += [*lists, *forms] if as_list else [*forms[:8], *lists, *forms[8:]]
    others = texts if count > 1 else ()
    return tuple(dict.fromkeys((*found[:12], *others, *found[12:], *_ANYTHING)))


# For what has no layer that could tell: functions of tensors, and tables that are indexed.
_ANYTHING = (
    Form((BATCH, 3, IMAGE, IMAGE)),
    Form((BATCH, 16)),
    Form((BATCH, LENGTH, 16)),
    Form((BATCH, LENGTH), "ids", limit=2),
)
_SCALARS = {"bool": False, "int": 1, "float": 1.0, "str": ""}


def _own_branch(index: int, count: int, entries: Sequence[Entry]) -> tuple[Form, ...]:
    """What the argument's own part of the model takes: the i-th child, for the i-th argument."""
    if count < 2:
        return ()
    for depth in (1, 2):
        branches: dict[str, Entry] = {}
        for entry in entries:
            branches.setdefault(".".join(entry.address.split(".")[:depth]), entry)
        if len(branches) >= count:
            return list(branches.values())[index].forms
    return ()


def _by_plausibility(first: Sequence[Form], entries: Sequence[Entry]) -> tuple[Form, ...]:
    ranked = [
        (rank + place, place, form)
        for place, entry in enumerate(entries[:8])
        for rank, form in enumerate(entry.forms)
    ]
    ranked.sort(key=lambda item: item[:2])
    return tuple(dict.fromkeys((*first, *(form for _, _, form in ranked))))


def _lists(forms: Sequence[Form], entries: Sequence[Entry]) -> Iterator[Form]:
    """Lists of tensors: one or several of the same form, one for each branch, pictures alone."""
    if not forms:
        return
    yield Form(fill="list", items=(forms[0],))
    yield Form(fill="list", items=(forms[0], forms[0]))
    for depth in (1, 2):
        branches: dict[str, Form] = {}
        for entry in entries:
            branches.setdefault(".".join(entry.address.split(".")[:depth]), entry.forms[0])
        firsts = tuple(branches.values())
        for count in dict.fromkeys((2, 3, len(firsts))):
            if 1 < count <= len(firsts) < 9:
                yield Form(fill="list", items=firsts[:count])
    alone = tuple(form for form in forms if form.shape[:1] == (BATCH,) and IMAGE in form.shape)[:1]
    for form in alone:
        yield Form(fill="list", items=(Form(form.shape[1:], dtype=form.dtype),) * 2)


_Maker = Callable[[Sequence[Form]], Iterator[Form]]


def _named(name: str, forms: Sequence[Form]) -> Iterator[Form]:
    """The forms that the argument's name speaks for."""
    for pattern, make in _HINTS:
        if re.search(pattern, name):
            yield from make(forms)
            return


def _masks(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((BATCH, LENGTH), "ones")
    yield Form((BATCH, LENGTH), "false")
    yield Form((LENGTH, LENGTH), "false")
    yield Form((BATCH, IMAGE, IMAGE), "ones")


def _paddings(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((BATCH, LENGTH), "false")


def _lengths(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((BATCH,), "lengths")


def _offsets(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((BATCH,), "ids", limit=2)


def _edges(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((2, BATCH), "ids", limit=2)


def _adjacency(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((BATCH, BATCH))


def _steps(forms: Sequence[Form]) -> Iterator[Form]:
    yield Form((BATCH,), "ids", limit=10)
    yield Form((BATCH,))
    yield Form((BATCH, 1))


def _labels(forms: Sequence[Form]) -> Iterator[Form]:
    limits = [form.limit for form in forms if form.fill == "ids"]
    yield Form((BATCH,), "ids", limit=min(limits, default=2))


def _ids(forms: Sequence[Form]) -> Iterator[Form]:
    yield from (form for form in forms if form.fill == "ids")


def _pictures(forms: Sequence[Form]) -> Iterator[Form]:
    yield from (form for form in forms if form.fill == "float" and IMAGE in form.shape)


def _signals(forms: Sequence[Form]) -> Iterator[Form]:
    floats = [form for form in forms if form.fill == "float" and SIGNAL in form.shape]
    yield from sorted(floats, key=lambda form: form.shape != (BATCH, SIGNAL))


# The first pattern that the name of a parameter contains decides.
_HINTS: tuple[tuple[str, _Maker], ...] = (
    (r"padding_mask|pad_mask", _paddings),
    (r"mask", _masks),
    (r"length|lens$|seq_len", _lengths),
    (r"offset", _offsets),
    (r"edge_index|edges", _edges),
    (r"^adj", _adjacency),
    (r"pixel|image|img|picture|frame|video", _pictures),
    (r"input_values|audio|wave|signal|speech", _signals),
    (r"_ids?$|^ids$|token|text|word|indices|^idx$", _ids),
    (r"^t$|^ts$|timestep|time_step|sigma|noise_level", _steps),
    (r"label|target|^class", _labels),
)


def combinations(
    choices: Sequence[Sequence[Form]], best: Callable[[], Sequence[Form]]
) -> Iterator[tuple[Form, ...]]:
    """Which forms to try together, most plausible first.

    Args:
        choices: the forms of each argument.
        best: tells the combination that got furthest so far.
    """
    if len(choices) < 2:
        yield from ((form,) for form in choices[0]) if choices else ((),)
        return
    if not all(choices):
        return
    firsts = tuple(forms[0] for forms in choices)
    yield from itertools.permutations(firsts) if len(firsts) < 4 else (firsts,)
    for form in choices[0]:  # the same for every argument: two pictures to compare
        if all(form in forms for forms in choices):
            yield (form,) * len(choices)
            break
    for _ in choices:
        base = tuple(best())
        for index, forms in enumerate(choices):
            yield from ((*base[:index], form, *base[index + 1 :]) for form in forms)
        if tuple(best()) == base:
            break
    few = [list(enumerate(forms[:6])) for forms in choices[:4]]
    rest = tuple(forms[0] for forms in choices[4:])
    product = sorted(itertools.product(*few), key=lambda item: sum(rank for rank, _ in item))
    for item in product:
        yield (*(form for _, form in item), *rest)


def nothing() -> Form:
    """An empty dict, to learn which keys a forward asks for."""
    return Form(fill="value", value=EMPTY)
