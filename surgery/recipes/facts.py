"""What an expectation may ask of a model: names, what they stand for, and how they are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from torch import nn

from surgery.families.registry import Registry
from surgery.findings import Heads
from surgery.heads import find_heads
from surgery.operations.names import remembered
from surgery.parameters import Audit, audit
from surgery.recording import record
from surgery.weights.verdicts import Matching

Kind: TypeAlias = Literal["number", "text", "truth", "nothing", "list", "mapping", "any"]


@dataclass(frozen=True, eq=False)
class Facts:
    """A model as expectations see it; nothing is found out before it is asked for.

    Attributes:
        model: the model.
        example: the arguments of one forward pass, if they are given.
        matching: what the last loading matched.
        registry: the plugins to ask.
    """

    model: nn.Module
    example: Any = None
    matching: Matching | None = None
    registry: Registry | None = None

    @cached_property
    def audit(self) -> Audit:
        """The count of its parameters."""
        return audit(self.model)

    @cached_property
    def heads(self) -> Heads:
        """The layers that make its classes."""
        return find_heads(self.model, self.example, registry=self.registry)

    @cached_property
    def outputs(self) -> Mapping[str, list[int]]:
        """The shape of every output in eval mode, by its path."""
        graph = record(self.model, self.example, train=False, registry=self.registry)
        return {leaf.path: list(leaf.spec.shape) for leaf in graph.leaves}


@dataclass(frozen=True)
class Known:
    """A name that expectations may use.

    Attributes:
        kind: of its values; ``any`` where it may be missing.
        meaning: for people.
        find: its value for a model.
    """

    kind: Kind
    meaning: str
    find: Callable[[Facts], Any]


def _num_classes(facts: Facts) -> int | None:
    sizes = {head.num_classes for head in facts.heads if head.role == "main"}
    return sizes.pop() if len(sizes) == 1 else None


def _output_shape(facts: Facts) -> list[int] | None:
    shapes = list(facts.outputs.values())
    return shapes[0] if len(shapes) == 1 else None


def _classes(facts: Facts) -> list[str] | None:
    names = remembered(facts.model)
    return None if names is None else list(names)


def _trainable_names(facts: Facts) -> list[str]:
    return [name for name, p in facts.model.named_parameters() if p.requires_grad]


def _matched(part: Callable[[Matching], Any]) -> Callable[[Facts], list[str] | None]:
    return lambda facts: None if facts.matching is None else list(part(facts.matching))


KNOWN: Mapping[str, Known] = {
    "parameters": Known("number", "elements of all parameters", lambda f: f.audit.total),
    "trainable": Known("number", "those of them that train", lambda f: f.audit.trainable),
    "frozen": Known("number", "those of them that do not", lambda f: f.audit.frozen),
    "trainable_ratio": Known(
        "number", "the share that trains, 0 to 1", lambda f: f.audit.trainable_ratio
    ),
    "buffers": Known("number", "elements of all buffers", lambda f: f.audit.buffers),
    "bytes": Known("number", "what all of it takes in memory", lambda f: f.audit.bytes),
    "num_classes": Known(
        "any", "classes of the main heads, None where they differ or there are none", _num_classes
    ),
    "heads": Known(
        "mapping",
        "numbers of classes by address of the head",
        lambda f: {head.address: head.num_classes for head in f.heads},
    ),
    "classes": Known("any", "names of the classes, None where nobody knows them", _classes),
    "output_shape": Known(
        "any", "shape of the output, None where there are several", _output_shape
    ),
    "outputs": Known("mapping", "shapes by path of the output", lambda f: dict(f.outputs)),
    "trainable_names": Known("list", "names of the parameters that train", _trainable_names),
    "loaded": Known(
        "any", "keys of the model that the last load_weights filled", _matched(lambda m: m.pairs)
    ),
    "missing": Known(
        "any", "keys of the model that its source had nothing for", _matched(lambda m: m.missing)
    ),
    "unexpected": Known(
        "any", "keys of its source without a place", _matched(lambda m: m.unexpected)
    ),
    "mismatched": Known(
        "any",
        "keys of the model that were of another shape",
        _matched(lambda m: [item.key for item in m.mismatched]),
    ),
}
