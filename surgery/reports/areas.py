"""What charts show: the modules of a model, the tensors of a source, and shares of a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from surgery.reports.chart import Chart, Mark, Part, Shade

if TYPE_CHECKING:
    # What lies in a file is drawn without torch, which these bring.
    from surgery.parameters import Audit
    from surgery.tally import Counted


def chart_of_modules(
    key: str,
    title: str,
    audit: Audit,
    marks: Mapping[str, tuple[Mark, ...]] | None = None,
    shades: Mapping[str, Shade] | None = None,
) -> Chart:
    """The modules of a model by what they hold; those that hold nothing are left out.

    Args:
        key: its name among the charts of a report.
        title: its heading.
        audit: the count of the model.
        marks: by address, what is said about a module.
        shades: by address, another colour than that of what is trainable and what is frozen.

    Returns:
        The chart. What a module with children holds itself is a part of its own.
    """
    marks, shades = marks or {}, shades or {}
    tree = _Tree(audit.rows[0].type if audit.rows else "(the model)")
    for row in audit.rows:
        marked = next((marks[address] for address in row.addresses if address in marks), ())
        shade = shades.get(row.address) or _shade(row)
        tree.add(row.address, row.type, _size(row.own), shade, marked)
    return Chart(key, title, "count", "parameters and buffers", tree.parts())


def chart_of_tensors(key: str, title: str, tensors: Iterable[tuple[str, str, int, Shade]]) -> Chart:
    """Tensors by their bytes, in the tree that their dotted names make.

    Args:
        key: its name among the charts of a report.
        title: its heading.
        tensors: of each tensor its name, its form in words, its bytes and its colour.

    Returns:
        The chart.
    """
    tree = _Tree("(all tensors)")
    tree.add("", "", 0, "tensors")
    for name, form, size, shade in tensors:
        above = name.split(".")[:-1]
        for length in range(1, len(above) + 1):
            tree.meet(".".join(above[:length]))
        tree.add(name, form, size, shade)
    return Chart(key, title, "bytes", "bytes", tree.parts())


def bar(key: str, title: str, of: str, sizes: Iterable[tuple[str, int, Shade]]) -> Chart:
    """Parts side by side; those of no size are left out."""
    parts = tuple(Part(name, name, "", size, shade) for name, size, shade in sizes if size)
    return Chart(key, title, "count", of, parts, "bar")


def trainable_bar(audit: Audit) -> Chart:
    """What of a model is trainable, frozen, and no parameter at all."""
    return bar(
        "shares",
        "Trainable and frozen",
        "elements",
        (
            ("trainable", audit.trainable, "trainable"),
            ("frozen", audit.frozen, "frozen"),
            ("buffers", audit.buffers, "buffers"),
            ("packed", audit.packed, "packed"),
        ),
    )


def _size(counted: Counted) -> int:
    return counted.total + counted.buffers + counted.packed


def _shade(counted: Counted) -> Shade:
    if counted.total:
        if counted.trainable == counted.total:
            return "trainable"
        return "partly" if counted.trainable else "frozen"
    return "packed" if counted.packed else "buffers"


class _Tree:
    """Parts as they come, each below the nearest part that its address lies in."""

    def __init__(self, whole: str) -> None:
        self.whole = whole
        self.own: list[tuple[str, str, int, Shade, tuple[Mark, ...]]] = []
        self.places: dict[str, int] = {}

    def meet(self, address: str) -> None:
        if address not in self.places:
            self.add(address, "", 0, "tensors")

    def add(
        self, address: str, kind: str, size: int, shade: Shade, marks: tuple[Mark, ...] = ()
    ) -> None:
        # A name may stand for a tensor and lead to others at once: both count.
        self.places.setdefault(address, len(self.own))
        self.own.append((address, kind, size, shade, marks))

    def parts(self) -> tuple[Part, ...]:
        parents = [self._parent(place) for place in range(len(self.own))]
        sizes = [size for _, _, size, _, _ in self.own]
        # A sum of what lies below, so that parts never outgrow their whole.
        for place in range(len(self.own) - 1, 0, -1):
            sizes[parents[place]] += sizes[place]
        kept: dict[int, int] = {}
        found: list[Part] = []
        with_children = {parents[place] for place, size in enumerate(sizes) if size and place}
        for place, (address, kind, own, shade, marks) in enumerate(self.own):
            if not sizes[place]:
                continue
            above = kept.get(parents[place], -1)
            label = _label(address) or self.whole
            kept[place] = len(found)
            found.append(Part(address, label, kind, sizes[place], shade, above, marks))
            if own and place in with_children:
                found.append(Part(address, f"{label} itself", kind, own, shade, kept[place], marks))
        return tuple(found)

    def _parent(self, place: int) -> int:
        address = self.own[place][0]
        if place == 0:
            return -1
        if self.places[address] != place:
            return self.places[address]
        while address:
            address = address.rpartition(".")[0]
            if address in self.places:
                return self.places[address]
        return 0


def _label(address: str) -> str:
    return address.rpartition(".")[2] or address
