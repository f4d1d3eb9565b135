"""What a model says of its number of classes: attributes, configurations, lists of names.

Such facts corroborate a head whose number they give, and must follow when it changes. They are
found by the field's own names for them, on modules, on their classes and a few levels into their
configurations.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from surgery import tree

COUNTS = frozenset(
    {
        "num_classes",
        "n_classes",
        "nclasses",
        "num_class",
        "n_class",
        "nb_classes",
        "number_of_classes",
        "class_count",
        "num_labels",
        "n_labels",
        "nb_labels",
        "num_categories",
        "n_categories",
    }
)
NAMES = frozenset({"classes", "class_names", "label_names", "labels", "categories"})
MAPPINGS = frozenset({"id2label", "label2id", "class_to_idx", "idx_to_class"})
CONFIGURATIONS = frozenset(
    {"config", "cfg", "conf", "configuration", "hparams", "args", "opt", "options", "params"}
)

_FACTS = COUNTS | NAMES | MAPPINGS

# Skipped before anything else is asked of it: models have many modules.
_MODULE_STATE = frozenset(nn.Module().__dict__)
_NO_CONFIGURATION = (int, float, str, type(None), torch.Tensor, nn.Module)
_NOT_INSIDE = (*_NO_CONFIGURATION, type, ModuleType, list, set, frozenset, FunctionType)

# How far configurations are looked into: they nest a few levels, and may lead to anything.
_DEPTH = 4
_WIDTH = 1000

FactKind: TypeAlias = Literal["count", "names", "mapping"]


@dataclass(frozen=True)
class Fact:
    """One place where a model says how many classes it has.

    Attributes:
        module: address of the module that holds it, or its configuration.
        path: where it is from there: ``num_classes``, ``config.num_labels``.
        kind: a number, a list of names, or a mapping between numbers and names.
        classes: how many it says.
    """

    module: str
    path: str
    kind: FactKind
    classes: int

    @property
    def address(self) -> str:
        """The full path, ``backbone.config.num_labels``."""
        return tree.join(self.module, self.path)


def find_facts(model: nn.Module) -> tuple[Fact, ...]:
    """Every fact of a model about its number of classes, in the order of the walk.

    Args:
        model: any module; wrappers are passed through. Nothing is changed or run, except that
            properties of those names are read.

    Example:
        >>> from torch import nn
        >>> from surgery.facts import find_facts
        >>> model = nn.Sequential(nn.Linear(2, 5))
        >>> model.num_classes = 5
        >>> find_facts(model)[0].address
        'num_classes'
    """
    found: dict[Fact, None] = {}
    seen: set[int] = set()
    classes_of: dict[type, dict[str, Any]] = {}
    for address, module in tree.walk(model):
        if id(module) in seen:
            continue
        seen.add(id(module))
        owner = type(module)
        if owner not in classes_of:
            classes_of[owner] = _of_class(owner)
        for path, kind, classes in _of_module(module, classes_of[owner]):
            found[Fact(address, path, kind, classes)] = None
    return tuple(found)


def _of_module(
    module: nn.Module, declared: Mapping[str, Any]
) -> Iterator[tuple[str, FactKind, int]]:
    for name, value in list(module.__dict__.items()):
        if name in _MODULE_STATE:
            continue
        if name in _FACTS:
            yield from _fact(name, value)
        if _is_configuration(name, value):
            yield from _inside(name, value, _DEPTH, set())
    for name, value in module._buffers.items():
        if name in COUNTS:
            yield from _fact(name, value)
    for name, value in declared.items():
        if name in module.__dict__:
            continue
        if name in _FACTS:
            yield from _fact(name, _read(module, name) if _is_descriptor(value) else value)
        elif _is_configuration(name, value):
            yield from _inside(name, value, _DEPTH, set())


def _inside(
    path: str, value: Any, depth: int, seen: set[int]
) -> Iterator[tuple[str, FactKind, int]]:
    """The facts in a configuration and in what it holds."""
    if id(value) in seen or len(seen) >= _WIDTH:
        return
    seen.add(id(value))
    for name, item in members(value).items():
        for inner, kind, classes in _fact(name, item):
            yield f"{path}.{inner}", kind, classes
        # A dot in a name would read as two.
        if depth > 1 and name not in MAPPINGS and "." not in name and _leads_on(item):
            yield from _inside(f"{path}.{name}", item, depth - 1, seen)


def _leads_on(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    if isinstance(value, tuple):
        return hasattr(value, "_fields")
    return hasattr(value, "__dict__") and not isinstance(value, _NOT_INSIDE)


def _fact(name: str, value: Any) -> Iterator[tuple[str, FactKind, int]]:
    if name in COUNTS or name == "classes":
        count = _count(value)
        if count > 0:
            yield name, "count", count
    if name in NAMES and _are_names(value):
        yield name, "names", len(value)
    if name in MAPPINGS and isinstance(value, Mapping) and value:
        yield name, "mapping", len(value)


def _count(value: Any) -> int:
    """The number that a whole number of any kind gives, a tensor of one too; else 0."""
    if isinstance(value, torch.Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        if value.dim() or value.is_meta or not whole:
            return 0
        return int(value)
    return int(value) if isinstance(value, numbers.Integral) and value is not True else 0


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(item, str) for item in value)


def _is_configuration(name: str, value: Any) -> bool:
    if isinstance(value, _NO_CONFIGURATION):
        return False
    return name.strip("_").lower().rpartition("_")[2] in CONFIGURATIONS


def members(value: Any) -> dict[str, Any]:
    """What a configuration holds, by name: of a dict, a named tuple, an object or a class.

    Properties and what the class of an object gives count where they have one of the names that
    facts go by.
    """
    if isinstance(value, Mapping):
        names = [key for key in value if isinstance(key, str)]
        return {name: _entry(value, name) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, type):
        return {n: i for n, i in _of_class(value).items() if not _is_descriptor(i)}
    held = dict(getattr(value, "__dict__", {}))
    for name in _of_class(type(value)):
        if name in _FACTS and name not in held:
            held[name] = _read(value, name)
    return held


def _of_class(owner: type) -> dict[str, Any]:
    """What a class gives its objects that may be a fact or a configuration, unread."""
    found: dict[str, Any] = {}
    for base in owner.__mro__:
        for name, value in base.__dict__.items():
            if name in _FACTS or _is_configuration(name, value):
                found.setdefault(name, value)
    return {name: value for name, value in found.items() if _is_given(name, value)}


def _is_given(name: str, value: Any) -> bool:
    """Whether something on a class is a value, or read without a trace: a slot or a property.

    Lists and mappings behind a property may cost much to make, and cannot be set.
    """
    if isinstance(value, property):
        return name in COUNTS
    return isinstance(value, MemberDescriptorType) or not _is_descriptor(value)


def _is_descriptor(value: Any) -> bool:
    return hasattr(type(value), "__get__")


def _read(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except Exception:  # a foreign property may raise anything, and then says nothing
        return None


def _entry(owner: Mapping[str, Any], name: str) -> Any:
    try:
        return owner[name]
    except Exception:  # a foreign mapping may compute its entries, and fail like a property
        return None
