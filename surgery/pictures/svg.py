"""A sketch as SVG: cards for modules, pills for what lies between them, lines with shapes.

Colours follow the reader's preference for light or dark, and nothing is said by colour alone.
Names of a model are data: the text of an element, never a part of its markup.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from xml.etree import ElementTree

from surgery.pictures import marks, words
from surgery.pictures.blocks import Block, Edge, Group, Sketch
from surgery.pictures.layout import Layout, Point, Rectangle, arrange

_MARGIN = 28.0
_HEAD = 66.0
_CARD = (244.0, 50.0)
_PILL = 28.0
_STACK = 4.0
_WIDEST = 300.0
_NARROWEST = 150.0
# The width of a character as a share of the size of its font, rounded up.
_MONO, _SANS = 0.61, 0.56
_LEAST_WIDTH = 620.0
_LEGEND_ROW = 24.0
_MEANINGS = {
    marks.HEAD: "makes the classes",
    marks.NEW: "put there by an operation",
    marks.TRANSPLANTED: "came from another model",
    marks.LOADED: "loaded from a checkpoint",
    marks.FROZEN: "does not train",
    marks.PARTLY: "some of it does not train",
    marks.SHARED: "one parameter or module in several places",
}


@dataclass(frozen=True, slots=True)
class Caption:
    """What is written around a drawing.

    Attributes:
        title: of the model.
        facts: below the title.
        notes: at the foot, one a line.
        classes: the name of the class of every module, by address.
    """

    title: str
    facts: str
    notes: tuple[str, ...] = ()
    classes: tuple[tuple[str, str], ...] = ()


def render(whole: Sketch, caption: Caption) -> str:
    """Lay a sketch out and write it as SVG.

    Args:
        whole: blocks, edges and groups.
        caption: what is written around them.

    Returns:
        The SVG: one document without script or reference to anything outside of it. Equal for
        equal arguments, byte by byte.
    """
    sizes = [_size(block) for block in whole.blocks]
    ends = [(edge.source, edge.target) for edge in whole.edges]
    layout = arrange(sizes, ends, [frozenset(group.members) for group in whole.groups])
    return _Page(whole, caption, layout).written()


def _size(block: Block) -> tuple[float, float]:
    if block.kind == "module":
        return _CARD
    text = _pill_text(block)
    return min(_WIDEST, max(_NARROWEST, _width(text, 12, _SANS) + 32)), _PILL


def _width(text: str, size: float, share: float) -> float:
    return len(text) * size * share


def _pill_text(block: Block) -> str:
    if block.kind == "operations":
        return words.doing(block)
    if block.kind == "output" and block.repeats > 1:
        return f"{block.repeats} outputs · {words.shapes(block.made)}"
    name = "input" if block.address == "args[0]" else block.address
    return f"{words.shortened(words.legible(name), 24)} · {words.shapes(block.made)}"


class _Page:
    """The document that grows while a sketch is written."""

    def __init__(self, whole: Sketch, caption: Caption, layout: Layout) -> None:
        self.whole = whole
        self.caption = caption
        self.layout = layout
        self.classes = dict(caption.classes)
        text = max(_width(caption.title, 19, _SANS), _width(caption.facts, 12, _SANS))
        self.width = max(layout.width, text, _LEAST_WIDTH) + 2 * _MARGIN
        self.left = (self.width - layout.width) / 2
        self.top = _MARGIN + _HEAD
        self.drawing = ElementTree.Element("g", transform=f"translate({_n(self.left)} {self.top})")

    def written(self) -> str:
        """The whole document."""
        framed = [
            (group, frame)
            for group, frame in zip(self.whole.groups, self.layout.frames, strict=True)
            if frame is not None
        ]
        for _, frame in framed:
            _add(self.drawing, "rect", _at(frame) | {"class": "frame-box", "rx": "14"})
        for edge, route in zip(self.whole.edges, self.layout.routes, strict=True):
            self._line(edge, route)
        for group, frame in framed:
            self._frame(group, frame, framed)
        for route in self.layout.routes:
            _tip(self.drawing, *route[-1])
        self._labels()
        for place, (block, box) in enumerate(
            zip(self.whole.blocks, self.layout.boxes, strict=True)
        ):
            around = [group for group, _ in framed if place in group.members]
            self._block(block, box, around[-1].address if around else "")
        return self._document()

    def _document(self) -> str:
        foot = ElementTree.Element("g")
        height = self.top + self.layout.height + 2 * _STACK
        height = self._legend(foot, height + 30)
        height = self._notes(foot, height) + _MARGIN
        size = {"width": _n(self.width), "height": _n(height)}
        root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "class": "surgery-drawing",
                "viewBox": f"0 0 {size['width']} {size['height']}",
                **size,
                "role": "img",
            },
        )
        said = "; ".join([self.caption.facts, *self.caption.notes])
        _add(root, "title", text=self.caption.title)
        _add(root, "desc", text=said)
        _add(
            root, "style", text=files("surgery.pictures").joinpath("drawing.css").read_text("utf-8")
        )
        _add(root, "rect", {"class": "page", **size, "rx": "12"})
        _text(root, "title", self.caption.title, _MARGIN, _MARGIN + 20)
        _text(root, "facts", self.caption.facts, _MARGIN, _MARGIN + 41)
        root.append(self.drawing)
        root.append(foot)
        # Two drawings on one page must not describe each other.
        name = hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:12]
        root[0].set("id", f"title-{name}")
        root[1].set("id", f"desc-{name}")
        root.set("aria-labelledby", f"title-{name} desc-{name}")
        for element in (*root, *self.drawing):
            element.tail = "\n"
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def _frame(
        self, group: Group, frame: Rectangle, framed: Sequence[tuple[Group, Rectangle]]
    ) -> None:
        element = _add(self.drawing, "g", {"class": "frame"})
        around = [other.address for other, _ in framed if set(group.members) < set(other.members)]
        name = self._relative(group.address, around[-1] if around else "", group.last)
        badge = f"{words.TIMES} {group.repeats}" if group.repeats > 1 else ""
        kind = words.legible(self.classes.get(group.address, ""))
        beside = _width(badge, 11, _SANS) + 22 if badge else 0.0
        room = frame.width - 28 - beside
        name = words.shortened(name, int(room / (11 * _MONO)))
        x, wide = frame.x + 14, _width(name, 11, _MONO)
        _text(element, "frame-name mono", name, x, frame.y + 20)
        if badge:
            _badge(element, badge, x + wide + beside, frame.y + 8)
        if kind and wide + 8 + _width(kind, 11, _SANS) <= room:
            _text(element, "frame-kind", kind, x + wide + 8 + beside, frame.y + 20)

    def _relative(self, address: str, around: str, last: str = "") -> str:
        """An address as seen from the frame it is drawn in."""
        name = words.series(address, last) if last else address
        prefix = f"{around}." if around else ""
        if address.startswith(prefix):
            name = ".".join(name.split(".")[prefix.count(".") :])
        return words.legible(name) or "(the model itself)"

    def _line(self, edge: Edge, route: Sequence[Point]) -> None:
        way = _path(route)
        line = _add(self.drawing, "g", {"class": "edge"})
        _add(line, "title", text=words.shapes(edge.specs))
        _add(line, "path", {"class": "line", "d": way})

    def _labels(self) -> None:
        """The shapes that leave each block, once."""
        leaving: dict[int, list[Edge]] = {}
        for edge in self.whole.edges:
            leaving.setdefault(edge.source, []).append(edge)
        for source, edges in leaving.items():
            block, box = self.whole.blocks[source], self.layout.boxes[source]
            if block.kind == "input" or all(
                self.whole.blocks[edge.target].kind == "output" for edge in edges
            ):
                continue
            specs = dict.fromkeys(spec for edge in edges for spec in edge.specs)
            deeper = 2 * _STACK if block.repeats > 1 else 0.0
            x, y = box.centre + 8, box.bottom + 15 + deeper
            framed = any(
                frame is not None and frame.x < x < frame.right and frame.y < y < frame.bottom
                for frame in self.layout.frames
            )
            # What passes behind the words is hidden by an edge in the colour of the ground.
            kind = "shape framed" if framed else "shape"
            _text(self.drawing, kind, words.shapes(specs), x, y)

    def _block(self, block: Block, box: Rectangle, around: str) -> None:
        sort = words.sort_of(block)
        element = _add(
            self.drawing, "g", {"class": " ".join(["node", block.kind, sort, *_classes(block)])}
        )
        _add(element, "title", text=self._details(block))
        if block.kind != "module":
            _add(element, "rect", _at(box) | {"class": "box", "rx": _n(box.height / 2)})
            text = words.legible(_pill_text(block))
            most = int((box.width - 24) / (12 * _SANS))
            shown = text if len(text) <= most else text[: most - 1] + "…"
            _text(element, "pill", shown, box.centre, box.y + box.height / 2 + 4)
        else:
            self._card(element, block, box, around)
        _marked(element, _said(block), box)

    def _card(
        self, element: ElementTree.Element, block: Block, box: Rectangle, around: str
    ) -> None:
        for layer in (2, 1) if block.repeats > 1 and block.address not in self._framed else ():
            behind = Rectangle(
                box.x + layer * _STACK, box.y + layer * _STACK, box.width, box.height
            )
            _add(element, "rect", _at(behind) | {"class": "stack", "rx": "9"})
        _add(element, "rect", _at(box) | {"class": "box", "rx": "9"})
        stripe = Rectangle(box.x + 8, box.y + 10, 4, box.height - 20)
        _add(element, "rect", _at(stripe) | {"class": "sort", "rx": "2"})
        alone = block.repeats > 1 and block.address not in self._framed
        badge = f"{words.TIMES} {block.repeats}" if alone else ""
        room = box.width - 34 - (_width(badge, 11, _SANS) + 18 if badge else 0)
        name = self._relative(block.address, around, block.last if alone else "")
        owner, _, own = words.shortened(name, int(room / (12.5 * _MONO))).rpartition(".")
        line = _text(element, "name", "", box.x + 22, box.y + 21)
        if owner:
            _add(line, "tspan", {"class": "muted"}, f"{owner}.")
        _add(line, "tspan", text=own)
        kind = words.legible(self.classes.get(block.address, "")) or words.doing(block)
        size = _parameters(block, box.width - 40 - _width(kind, 11, _SANS))
        most = int((box.width - 40 - _width(size, 11, _SANS)) / (11 * _SANS))
        shown = kind if len(kind) <= most else kind[: most - 1] + "…"
        _text(element, "kind", shown, box.x + 22, box.y + 38)
        if size:
            _text(element, "size", size, box.right - 12, box.y + 38)
        if badge:
            _badge(element, badge, box.right - 10, box.y + 11)

    @property
    def _framed(self) -> frozenset[str]:
        """The blocks whose repetition a frame around them shows."""
        return frozenset(
            self.whole.blocks[member].address
            for group, frame in zip(self.whole.groups, self.layout.frames, strict=True)
            if frame is not None and group.repeats > 1
            for member in group.members
        )

    def _details(self, block: Block) -> str:
        """What a reader sees who points at a block, and a screen reader says."""
        name = words.series(block.address, block.last) if block.last else block.address
        lines = [words.legible(name) or "(the model itself)"]
        if block.kind in ("input", "output"):
            lines += map(str, block.made)
            return "\n".join(lines)
        kind = self.classes.get(block.address)
        lines += [words.legible(kind)] if kind and block.kind == "module" else []
        if block.repeats > 1:
            lines.append(f"{block.repeats} alike")
        if block.elements:
            lines.append(f"{block.elements:,} parameters")
        if block.flops:
            lines.append(f"{words.count(block.flops)} floating-point operations")
        lines.append(words.doing(block))
        return "\n".join([*lines, *block.marks])

    def _legend(self, foot: ElementTree.Element, top: float) -> float:
        """What colours and marks mean, those that occur; returns where it ends."""
        blocks = [block for block in self.whole.blocks if block.kind == "module"]
        there = {words.sort_of(block) for block in blocks}
        items = [("sort", sort, text) for sort, text in words.SORTS.items() if sort in there]
        found = {mark for block in self.whole.blocks for mark in block.marks}
        if any(block.call[1] > 1 for block in self.whole.blocks):
            found.add(marks.SHARED)
        items += [("mark", mark, text) for mark, text in _MEANINGS.items() if mark in found]
        x, y = _MARGIN, top
        for form, key, text in items:
            pill = _width(key, 10, _SANS) + 16 if form == "mark" else 10.0
            wide = pill + 8 + _width(text, 11, _SANS) + 18
            if x > _MARGIN and x + wide > self.width - _MARGIN:
                x, y = _MARGIN, y + _LEGEND_ROW
            if form == "mark":
                _mark(foot, key, x, y - 8)
            else:
                group = _add(foot, "g", {"class": key})
                swatch = Rectangle(x, y - 5, 10, 10)
                _add(group, "rect", _at(swatch) | {"class": "sort", "rx": "3"})
            _text(foot, "legend", text, x + pill + 7, y + 4)
            x += wide
        return y + _LEGEND_ROW if items else top

    def _notes(self, foot: ElementTree.Element, top: float) -> float:
        most = int((self.width - 2 * _MARGIN) / (11 * _SANS))
        for note in self.caption.notes:
            for line in _wrapped(words.legible(note), most):
                _text(foot, "note", line, _MARGIN, top + 4)
                top += 16
        return top


def _tip(parent: ElementTree.Element, x: float, y: float) -> None:
    way = f"M{_n(x - 4)} {_n(y - 7)}L{_n(x)} {_n(y)}L{_n(x + 4)} {_n(y - 7)}Z"
    _add(parent, "path", {"class": "tip", "d": way})


def _parameters(block: Block, room: float) -> str:
    """How many parameters a card has, in the words that fit."""
    if not block.elements:
        return ""
    number = words.count(block.elements // block.repeats)
    if block.repeats > 1:
        return f"{block.repeats} {words.TIMES} {number}"
    whole = f"{number} parameters"
    return whole if _width(whole, 11, _SANS) <= room else number


def _classes(block: Block) -> Iterable[str]:
    return (f"is-{_key(mark)}" for mark in _said(block))


def _wrapped(text: str, most: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(most, 20))


def _path(route: Sequence[Point]) -> str:
    """A smooth line: curves from layer to layer, straight where it passes one."""
    (x, y), *rest = route
    steps = [f"M{_n(x)} {_n(y)}"]
    for place, (to_x, to_y) in enumerate(rest):
        if place % 2 == 1 or to_x == x:
            steps.append(f"L{_n(to_x)} {_n(to_y)}")
        else:
            middle = _n((y + to_y) / 2)
            steps.append(f"C{_n(x)} {middle} {_n(to_x)} {middle} {_n(to_x)} {_n(to_y)}")
        x, y = to_x, to_y
    return "".join(steps)


def _said(block: Block) -> list[str]:
    """The marks as they are written on a block."""
    call, calls = block.call
    if calls == 1:
        return list(block.marks)
    return [*(mark for mark in block.marks if mark != marks.SHARED), f"call {call} of {calls}"]


def _marked(element: ElementTree.Element, found: Sequence[str], box: Rectangle) -> None:
    """The marks on the upper side of a box, from the right."""
    right = box.right - 10
    for mark in reversed(found):
        width = _width(mark, 10, _SANS) + 16
        right -= width
        _mark(element, mark, right, box.y - 8)
        right -= 5


def _key(mark: str) -> str:
    return marks.SHARED if mark.startswith("call ") else mark.replace(" ", "-")


def _mark(element: ElementTree.Element, mark: str, x: float, y: float) -> None:
    width = _width(mark, 10, _SANS) + 16
    group = _add(element, "g", {"class": f"mark mark-{_key(mark)}"})
    _add(group, "rect", _at(Rectangle(x, y, width, 16)) | {"rx": "8"})
    _text(group, "mark-name", mark, x + width / 2, y + 11.5)


def _badge(element: ElementTree.Element, text: str, right: float, top: float) -> None:
    width = _width(text, 11, _SANS) + 14
    _add(
        element,
        "rect",
        _at(Rectangle(right - width, top, width, 17)) | {"class": "badge", "rx": "8.5"},
    )
    _text(element, "badge-text", text, right - width / 2, top + 12.5)


def _at(box: Rectangle) -> dict[str, str]:
    sides = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
    return {name: _n(value) for name, value in sides.items()}


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _add(
    parent: ElementTree.Element, tag: str, attributes: dict[str, str] | None = None, text: str = ""
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes or {})
    element.text = words.legible(text) if tag != "style" else text
    return element


def _text(
    parent: ElementTree.Element, kind: str, text: str, x: float, y: float
) -> ElementTree.Element:
    return _add(parent, "text", {"class": kind, "x": _n(x), "y": _n(y)}, text)
