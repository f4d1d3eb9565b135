"""Charts: a whole and its parts, as values. Only ``html.py`` draws them.

A chart holds no number that a table of the same report does not hold; texts and JSON leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# What the colour of a part says: of modules, of what a load fills, of a source of weights.
Shade: TypeAlias = Literal[
    "trainable",
    "frozen",
    "partly",
    "buffers",
    "packed",
    "loaded",
    "skipped",
    "unexpected",
    "missing",
    "tensors",
    "integers",
]
# What is said about a part besides.
Mark: TypeAlias = Literal["head", "changed"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a whole.

    Attributes:
        address: what names it; in a tree its full address.
        label: the same, short.
        kind: what it is: the class of a module, the shape of a tensor.
        size: how large it is, with everything below it.
        shade: what its colour says.
        parent: in a tree, the place of the part that holds it; -1 for the whole.
        marks: what else is to be seen of it.
    """

    address: str
    label: str
    kind: str
    size: int
    shade: Shade
    parent: int = -1
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """Parts of one whole.

    Attributes:
        key: its name among the charts of a report.
        title: its heading.
        unit: what sizes are: a ``count`` or ``bytes``.
        of: what is counted, in words.
        parts: a tree, parents first, or for a ``bar`` parts side by side.
        form: ``nested`` areas, or one ``bar``.
    """

    key: str
    title: str
    unit: Literal["count", "bytes"]
    of: str
    parts: tuple[Part, ...]
    form: Literal["nested", "bar"] = "nested"
