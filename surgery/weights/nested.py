"""Look into training checkpoints: which entry holds the model's tensors.

A checkpoint is a tree of dicts. Entries whose values are tensors are candidates; optimizer,
scheduler and random state is none, by its name or by its form. One candidate is taken, several
are an error that lists them: an averaged copy (``ema``) beside the model is a choice that only
the caller can make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from surgery.errors import AmbiguousWeightsError
from surgery.weights.brief import brief
from surgery.weights.verdicts import printable

Leaf = TypeVar("Leaf")

# What training keeps beside the model, whatever tensors it holds.
_BESIDE = re.compile(
    r"(.*_)?(opt|optim|optims|optimi[sz]er|optimi[sz]ers|sched|(lr_)?schedulers?|(grad_)?scaler|"
    r"amp|rng|random|callbacks|loops)(_states?|_state_dicts?|_dict)?|.*rng_states?",
    re.IGNORECASE,
)
# What people call the entry that holds a model.
_MODEL = re.compile(
    r".*(state_?dict|model|network|module|ema|weights|params|teacher|student|generator"
    r"|discriminator)(_?state)?|net|net_[a-z]|[a-z]*net",
    re.IGNORECASE,
)
_DEPTH = 5
_LISTED = 12


@dataclass(frozen=True)
class Choice(Generic[Leaf]):
    """The entry that was taken.

    Attributes:
        entries: its tensors by name.
        metadata: versions of the modules, as text by address, where the state dict has them.
        path: where it lies, its keys joined by dots; None at the top.
        notes: what else there was.
    """

    entries: dict[str, Leaf]
    metadata: dict[str, str]
    path: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    path: str
    value: Mapping[object, object]
    tensors: int

    @property
    def last(self) -> str:
        return self.path.rpartition(".")[2]


def choose(content: object, leaf: type[Leaf], inside: str | None, where: str) -> Choice[Leaf]:
    """Find the entry that holds the model's tensors.

    Args:
        content: what the source holds: a state dict or a training checkpoint.
        leaf: the type that a tensor has in it.
        inside: which entry to take, by its path or the start of it; ``""`` is the top.
        where: the source, for errors.

    Returns:
        The entry, with what lay beside it as notes.

    Raises:
        AmbiguousWeightsError: no entry holds tensors, several do, or none is called ``inside``.

    Example:
        >>> checkpoint = {"epoch": 3, "model": {"fc.bias": 1.5}, "optimizer": {"state": {}}}
        >>> choice = choose(checkpoint, float, None, "checkpoint.pth")
        >>> choice.path, choice.entries, choice.notes
        ('model', {'fc.bias': 1.5}, ("beside 'model': epoch=3, optimizer (dict)",))
    """
    if not isinstance(content, Mapping):
        raise AmbiguousWeightsError(
            "this holds no state dict",
            where=where,
            expected="a dict from names to tensors",
            found="one tensor without a name"
            if isinstance(content, leaf)
            else f"a {type(content).__name__}",
            fix="torch.save(model.state_dict(), 'weights.pth') where it was made",
        )
    top = _Candidate("", content, _direct(content, leaf))
    below = list(_below(content, leaf))
    taken = _asked(top, below, inside, where) if inside is not None else _only(top, below, where)
    if taken is None:
        raise _nothing(content, leaf, where)
    entries = {
        name: value
        for name, value in taken.value.items()
        if isinstance(name, str) and isinstance(value, leaf)
    }
    notes = []
    if taken is not top:
        beside = _others(content, leaf, {taken.path.partition(".")[0]})
        notes += [f"beside {taken.path!r}: {beside}"] if beside else []
    if within := _others(taken.value, leaf, set(entries)):
        notes.append(f"no tensor by name, left out: {within}")
    return Choice(entries, _versions(taken.value), taken.path or None, tuple(notes))


def _direct(value: Mapping[object, object], leaf: type) -> int:
    return sum(isinstance(k, str) and isinstance(v, leaf) for k, v in value.items())


def _below(
    content: Mapping[object, object], leaf: type, path: str = "", depth: int = 1
) -> Iterator[_Candidate]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or _is_beside(key, value):
            continue
        here = f"{path}.{key}" if path else key
        tensors = _direct(value, leaf)
        if tensors:
            yield _Candidate(here, value, tensors)
        elif depth < _DEPTH:
            yield from _below(value, leaf, here, depth + 1)


def _is_beside(name: str, value: Mapping[object, object]) -> bool:
    return bool(_BESIDE.fullmatch(name)) or {"state", "param_groups"} <= set(value)


def _only(top: _Candidate, below: list[_Candidate], where: str) -> _Candidate | None:
    """The one candidate, or None where there is none."""
    if "pytorch-lightning_version" in top.value:
        below = [each for each in below if _MODEL.fullmatch(each.path.partition(".")[0])]
    if top.tensors:
        models = [each for each in below if _MODEL.fullmatch(each.last)]
        if not models:
            return top
        # A loose tensor beside a model is a statistic (``best_acc1``); dotted names are weights.
        names = [name for name, value in top.value.items() if isinstance(name, str)]
        loose = [name for name in names if not isinstance(top.value[name], Mapping)]
        weights = any("." in name or name in ("weight", "bias") for name in loose)
        below = [top, *models] if weights else models
    if len(below) > 1:
        raise AmbiguousWeightsError(
            f"{len(below)} entries hold a model's tensors, and nothing says which one is meant",
            where=where,
            expected="one state dict, or inside= to choose",
            found=_listing(below),
            fix=f"inside={below[0].path!r}",
        )
    return below[0] if below else None


def _asked(top: _Candidate, below: list[_Candidate], inside: str, where: str) -> _Candidate:
    everything = [top, *below] if top.tensors else below
    exact = [each for each in everything if each.path == inside]
    found = exact or [each for each in below if inside and each.path.startswith(f"{inside}.")]
    if len(found) == 1:
        return found[0]
    several = len(found) > 1
    shown = found or everything
    raise AmbiguousWeightsError(
        f"{len(found)} entries lie inside {inside!r}" if several else f"no entry {inside!r}",
        where=where,
        expected="the path of one entry that holds tensors",
        found=_listing(shown) or "no entry that holds a model's tensors",
        fix=f"inside={shown[0].path!r}" if shown else "leave inside= out to see what there is",
    )


def _listing(candidates: list[_Candidate]) -> str:
    lines = [
        f"{each.path!r}: {_tensors(each.tensors)}" + (" at the top" if not each.path else "")
        for each in candidates[:_LISTED]
    ]
    more = len(candidates) - _LISTED
    return "\n".join([*lines, f"and {more:,} more"] if more > 0 else lines)


def _nothing(content: Mapping[object, object], leaf: type, where: str) -> AmbiguousWeightsError:
    beside = [
        repr(name)
        for name, value in content.items()
        if isinstance(value, Mapping) and _is_beside(str(name), value)
    ]
    optimizer = beside or _is_beside("", content)
    return AmbiguousWeightsError(
        "this holds no model's tensors" + (", only state of training" if optimizer else ""),
        where=where,
        expected="names with tensors, at the top or in an entry such as 'state_dict'",
        found=_others(content, leaf, set()) or "an empty dict",
        fix="torch.save(model.state_dict(), 'weights.pth') where it was made",
    )


def _others(value: Mapping[object, object], leaf: type, but: set[str]) -> str:
    """What else a dict holds, in a few words for each entry."""
    said = [_say(key, entry, leaf) for key, entry in value.items() if key not in but]
    more = len(said) - _LISTED
    return ", ".join([*said[:_LISTED], f"and {more:,} more"] if more > 0 else said)


def _say(key: object, value: object, leaf: type) -> str:
    name = printable(key) if isinstance(key, str) else brief(key)
    if isinstance(value, leaf):
        return f"{name} (tensor)"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{name}={brief(value, 40)}"
    count = _count(value, leaf)
    kind = type(value).__name__.lower().lstrip("_")
    if isinstance(value, Mapping):
        kind = "dict"
    return f"{name} ({kind}, {_tensors(count)})" if count else f"{name} ({kind})"


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _count(value: object, leaf: type) -> int:
    """How many tensors lie in a value, at any depth. Each container is entered once."""
    pending, seen, count = [value], set[int](), 0
    while pending:
        item = pending.pop()
        if isinstance(item, leaf):
            count += 1
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item.values() if isinstance(item, Mapping) else item)
    return count


def _versions(state: Mapping[object, object]) -> dict[str, str]:
    """The versions that ``module.state_dict()`` hangs on what it returns."""
    hung = getattr(state, "_metadata", None)
    if not isinstance(hung, Mapping):
        return {}
    return {
        address: str(facts["version"])
        for address, facts in hung.items()
        if isinstance(address, str) and isinstance(facts, Mapping) and "version" in facts
    }
