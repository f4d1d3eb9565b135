"""What a plugin knows of a library that puts its own around other people's modules.

Nothing here imports torch, so that a plugin costs nothing until it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgery.errors import PluginError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Wrapping:
    """What a library puts around a module, and what that means for whoever changes the module.

    A wrapping is told by the class of what it puts there, or by an attribute that it hangs on
    modules of any class.

    Args:
        name: what people call it, ``adapter``.
        classes: qualified names of its classes, ``package.module.Class``, along the MRO.
        attribute: the name of an attribute that it hangs on the module itself.
        carries: where it wraps a whole model and runs it as it is: the path to that model, whose
            family then knows what goes in.
        bare: takes it off one module, where it would be in the way of a recording (moves
            weights about, reads them from a file). It is given a copy without weights.
        copies: where it keeps several of one layer and runs one: patterns of their addresses
            inside it, ``("original", "others.*")``. A plan notes which of them stay as they are.
        refuses: from the wrapped module, the address inside it of what is to be changed, and
            whether that only gets other values, to why it cannot be; an empty string where it can.
        remedy: what to do where it refuses, as code; ``{address}`` stands for the module.

    Raises:
        PluginError: a field has a wrong type, or nothing says what it is told by.

    Example:
        >>> from surgery.families.wrapping import Wrapping
        >>> adapter = Wrapping("adapter", classes=("adapters.Adapted",), copies=("original",))
        >>> adapter.copies
        ('original',)
    """

    name: str
    classes: tuple[str, ...] = ()
    attribute: str = ""
    carries: str = ""
    bare: Callable[[nn.Module], None] | None = None
    copies: tuple[str, ...] = ()
    refuses: Callable[[nn.Module, str, bool], str] | None = None
    remedy: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "attribute", "carries", "remedy"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise self._wrong(field, "a string", value)
        for field in ("classes", "copies"):
            value = getattr(self, field)
            if not isinstance(value, tuple) or not all(isinstance(v, str) and v for v in value):
                raise self._wrong(field, "a tuple of strings", value)
        for field in ("bare", "refuses"):
            value = getattr(self, field)
            if value is not None and not callable(value):
                raise self._wrong(field, "a callable, or nothing", value)
        if not self.name:
            raise self._wrong("name", "what people call it", self.name)
        if bool(self.classes) is bool(self.attribute):
            raise self._wrong("classes", "classes or an attribute, one of them", self.classes)
        if (self.refuses is None) is not (self.remedy == ""):
            raise self._wrong("remedy", "what to do where it refuses, and only there", self.remedy)

    def _wrong(self, field: str, expected: str, found: object) -> PluginError:
        sample = {"classes": "('package.module.Class',)", "copies": "('original',)"}
        return PluginError(
            f"wrapping {self.name!r}: {field} is not what it should be",
            where=f"Wrapping({self.name!r}).{field}",
            expected=expected,
            found=repr(found),
            fix=f"Wrapping(..., {field}={sample.get(field, '...')})",
        )

    def is_on(self, module: nn.Module) -> bool:
        """Whether it is there, on this module.

        Args:
            module: any module; nothing of it is run, and no property read.
        """
        from surgery.wrappers import class_name

        if self.attribute:
            return self.attribute in vars(module)
        return any(class_name(base) in self.classes for base in type(module).__mro__)

    def standing(self, module: nn.Module) -> Iterator[str]:
        """The addresses inside a wrapped module of all copies of the layer.

        Args:
            module: a module that it is on.

        Yields:
            Addresses from that module, those of ``copies`` that are there.
        """
        from fnmatch import fnmatchcase

        for name, _ in module.named_modules():
            parts = name.count(".")
            if any(p.count(".") == parts and fnmatchcase(name, p) for p in self.copies):
                yield name
