"""What a model says of its number of classes: attributes, configurations, lists of names.

Such facts corroborate a head whose number they give, and must follow when it changes. They are
found by the field's own names for them, on modules and one level into their configurations.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

# Skipped before anything else is asked of it: models have many modules.
_MODULE_STATE = frozenset(nn.Module().__dict__)
_NO_CONFIGURATION = (int, float, str, type(None), type, torch.Tensor, nn.Module)

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
    for address, module in tree.walk(model):
        if id(module) in seen:
            continue
        seen.add(id(module))
        for path, kind, classes in _of_module(module):
            found[Fact(address, path, kind, classes)] = None
    return tuple(found)


def _of_module(module: nn.Module) -> Iterator[tuple[str, FactKind, int]]:
    for name, value in list(module.__dict__.items()):
        if name in _MODULE_STATE:
            continue
        yield from _fact(name, value)
        if _is_configuration(name, value):
            for inner, item in members(value).items():
                for path, kind, classes in _fact(inner, item):
                    yield f"{name}.{path}", kind, classes
    for name in _properties(type(module)):
        yield from _fact(name, _read(module, name))


def _fact(name: str, value: Any) -> Iterator[tuple[str, FactKind, int]]:
    if (name in COUNTS or name == "classes") and type(value) is int and value > 0:
        yield name, "count", value
    if name in NAMES and _are_names(value):
        yield name, "names", len(value)
    if name in MAPPINGS and isinstance(value, Mapping) and value:
        yield name, "mapping", len(value)


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(item, str) for item in value)


def _is_configuration(name: str, value: Any) -> bool:
    if isinstance(value, _NO_CONFIGURATION):
        return False
    return name.strip("_").lower().rpartition("_")[2] in CONFIGURATIONS


def members(value: Any) -> dict[str, Any]:
    """What a configuration holds, by name: of a dict, a named tuple or an object.

    Properties count where they have one of the names that facts go by.
    """
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    held = dict(getattr(value, "__dict__", {}))
    for name in _properties(type(value)):
        held[name] = _read(value, name)
    return held


def _properties(owner: type) -> list[str]:
    """The names of counts that a class gives by a property."""
    # Asked of every module: a look into each class's own names is the quickest way to no.
    held = [base.__dict__ for base in owner.__mro__]
    names = {name for name in COUNTS for names in held if name in names}
    return [n for n in sorted(names) if isinstance(inspect.getattr_static(owner, n), property)]


def _read(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except Exception:  # a foreign property may raise anything, and then says nothing
        return None
