"""One guess at the arguments of a forward pass, and why a pass with it failed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from surgery.graph.arguments import Slot
from surgery.graph.example import Example
from surgery.graph.forms import Form, Size
from surgery.graph.structure import tensors


@dataclass(frozen=True, slots=True)
class Candidate:
    """A guess: a form for every slot, and a size for every axis that the forms leave free."""

    slots: tuple[Slot, ...]
    forms: tuple[Form, ...]
    sizes: tuple[tuple[str, Size], ...]
    limit: int | None = None

    def at(self, axis: str, size: Size) -> Candidate:
        """The same guess with another size along one axis."""
        sizes = tuple((name, size if name == axis else old) for name, old in self.sizes)
        return replace(self, sizes=sizes)

    def example(self) -> Example:
        """The arguments it stands for."""
        sizes = dict(self.sizes)
        values = [form.build(sizes, self.limit) for form in self.forms]
        filled = list(zip(self.slots, values, strict=True))
        args = [value for slot, value in filled if slot.place == "positional"]
        entry = {slot.name: value for slot, value in filled if slot.place == "entry"}
        keywords = {slot.name: value for slot, value in filled if slot.place == "keyword"}
        return Example((entry, *args) if entry else tuple(args), keywords)

    def shown(self) -> str:
        """The arguments by path, dtype and shape."""
        example = self.example()
        parts = [
            f"{path} {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            for path, tensor in (*tensors(example.args, "args"), *tensors(example.kwargs, "kwargs"))
        ]
        return ", ".join(parts) or "no tensors"

    def as_code(self) -> str:
        """A guess as a user would write it."""
        sizes = dict(self.sizes)
        values = {
            slot.name: _value_as_code(form.build(sizes))
            if form.fill != "value"
            else repr(form.value)
            for slot, form in zip(self.slots, self.forms, strict=True)
        }
        if len(values) == 1 and self.slots[0].place == "positional":
            [value] = values.values()
            return value if value.startswith("torch.") else f"({value},)"
        if all(slot.place == "positional" for slot in self.slots):
            return f"({', '.join(values.values())})" if values else ""
        inside = ", ".join(f"{name!r}: {value}" for name, value in values.items())
        entry = any(slot.place == "entry" for slot in self.slots)
        return f"({{{inside}}},)" if entry else f"{{{inside}}}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a pass was not good enough, and how far it got: modules begun and modules finished."""

    text: str
    progress: int
    where: str
    missing: str = ""
    batch: bool = False
    limit: int | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in the message."""
        return tuple(int(number[:18]) for number in re.findall(r"\d+", self.text))

    @property
    def skeleton(self) -> str:
        """The message without its numbers."""
        return re.sub(r"\d+", "#", self.text)


def _value_as_code(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value_as_code(item) for item in value)}]"
    if not isinstance(value, torch.Tensor):
        return repr(value)
    shape = ", ".join(str(size) for size in value.shape)
    kind = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
    return f"torch.zeros({shape}{kind})"
