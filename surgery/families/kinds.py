"""What a plugin adds besides families: how to rebuild unusual heads, how to read other files.

Nothing here imports torch, so that a plugin costs nothing until it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import PluginError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class HeadKind:
    """How to rebuild a head layer that is no plain linear layer or convolution.

    Args:
        name: what people call it, ``cosine classifier``.
        classes: qualified names of the layer classes, claimed along the MRO as families are.
        rebuild: ``rebuild(layer, num_classes)`` returns a new layer of the same kind, with the
            same input size and options and freshly initialised parameters, on the device and in
            the dtype of the old one, which it leaves alone.

    Raises:
        PluginError: a field has a wrong type or is malformed.

    Example:
        >>> import torch
        >>> from surgery.families.kinds import HeadKind
        >>> kind = HeadKind(
        ...     name="plain",
        ...     classes=("torch.nn.modules.linear.Linear",),
        ...     rebuild=lambda layer, num_classes: torch.nn.Linear(layer.in_features, num_classes),
        ... )
        >>> kind.rebuild(torch.nn.Linear(4, 9), 2)
        Linear(in_features=4, out_features=2, bias=True)
    """

    name: str
    classes: tuple[str, ...]
    rebuild: Callable[[nn.Module, int], nn.Module]

    def __post_init__(self) -> None:
        _check_kind("HeadKind", self.name, classes=self.classes, rebuild=self.rebuild)


@dataclass(frozen=True)
class WeightReader:
    """How to read a checkpoint format.

    Args:
        name: what people call the format, ``npz``.
        suffixes: how its file names end, each with its dot; upper and lower case are the same.
        sniff: looks at a file with such a name and says whether it is of this format. It reads
            the header, not the file.
        open: the tensors of the file by name; lazily, where the format allows. It must not run
            code from the file.

    Raises:
        PluginError: a field has a wrong type or is malformed.

    Example:
        >>> from surgery.families.kinds import WeightReader
        >>> WeightReader("empty", (".none",), sniff=lambda path: True, open=lambda path: {}).name
        'empty'
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[Path], bool]
    open: Callable[[Path], Mapping[str, torch.Tensor]]

    def __post_init__(self) -> None:
        _check_kind("WeightReader", self.name, suffixes=self.suffixes, sniff=self.sniff)
        _check_kind("WeightReader", self.name, open=self.open)
        for suffix in self.suffixes:
            if not suffix.startswith(".") or len(suffix) < 2:
                raise PluginError(
                    f"{suffix!r} is no suffix of a file name",
                    where=f"WeightReader({self.name!r}).suffixes",
                    expected="a dot and what follows it",
                    found=repr(suffix),
                    fix=f"suffixes=('.{suffix.strip('.') or 'npz'}',)",
                )


def _check_kind(kind: str, name: object, **fields: object) -> None:
    """The fields that head kinds and weight readers share: a name, tuples of names, functions."""
    if not isinstance(name, str) or not name:
        raise PluginError(
            f"a {kind} needs a name",
            where=f"{kind}.name",
            expected="a string",
            found=repr(name),
            fix=f"{kind}(name='mine', ...)",
        )
    for key, value in fields.items():
        tuples = key in {"classes", "suffixes"}
        good = callable(value)
        if tuples:
            good = (
                isinstance(value, tuple)
                and len(value) > 0
                and all(isinstance(item, str) and item for item in value)
                and len(set(value)) == len(value)
            )
        if not good:
            raise PluginError(
                f"{kind} {name!r}: {key} has a wrong type",
                where=f"{kind}({name!r}).{key}",
                expected="a tuple of different strings" if tuples else "a callable",
                found=repr(value),
                fix=f"{key}=({value if isinstance(value, str) else '...'!r},)"
                if tuples
                else f"{key}=function",
            )
