"""Files that a plugin's reader opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from surgery.errors import PluginError, SurgeryError
from surgery.weights import nested
from surgery.weights.value import TensorInfo, Weights

if TYPE_CHECKING:
    from surgery.families.kinds import WeightReader


def of_reader(reader: WeightReader, path: Path, inside: str | None) -> Weights:
    """Open a file with a plugin's reader. Its tensors are asked for one by one, when needed.

    Args:
        reader: the plugin's reader, which has accepted the file.
        path: the file.
        inside: nothing to choose: an error unless None or ``""``.

    Returns:
        The lazy value; the facts of a tensor cost what the reader takes to give the tensor.

    Raises:
        PluginError: the reader raised, or returned no mapping from names to tensors.
    """
    opened = _call(reader, path, "open", lambda: reader.open(path))
    if not isinstance(opened, Mapping) or not all(isinstance(name, str) for name in opened):
        raise _wrong(reader, path, "a mapping from names to tensors", type(opened).__name__)
    names = tuple(opened)
    nested.choose(dict.fromkeys(names, ""), str, inside, str(path))
    store = _Plugged(reader, path, opened)
    return Weights(
        str(path),
        reader.name,
        _Facts(names, store),
        {},
        None,
        (f"read by the plugin's reader {reader.name!r}",),
        store,
    )


@dataclass(frozen=True, eq=False)
class _Plugged:
    reader: WeightReader
    path: Path
    opened: Mapping[str, torch.Tensor]

    def fetch(self, name: str) -> torch.Tensor:
        tensor = _call(self.reader, self.path, f"open(...)[{name!r}]", lambda: self.opened[name])
        if not isinstance(tensor, torch.Tensor):
            raise _wrong(self.reader, self.path, f"a tensor for {name!r}", type(tensor).__name__)
        return tensor

    def read(self, name: str) -> torch.Tensor:
        return self.fetch(name).detach().clone()

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.opened:
            if name in names:
                yield name, self.read(name)


@dataclass(frozen=True, eq=False)
class _Facts(Mapping[str, TensorInfo]):
    """Facts that are found out when they are asked for: the reader may be lazy."""

    names: tuple[str, ...]
    store: _Plugged

    @cached_property
    def _known(self) -> dict[str, TensorInfo | None]:
        return dict.fromkeys(self.names)

    def __getitem__(self, name: str) -> TensorInfo:
        info = self._known[name]
        if info is None:
            tensor = self.store.fetch(name)
            size = tensor.numel() * tensor.element_size()
            info = self._known[name] = TensorInfo(tuple(tensor.shape), tensor.dtype, size)
        return info

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _call(reader: WeightReader, path: Path, what: str, function: Callable[[], object]) -> object:
    try:
        return function()
    except SurgeryError:
        raise
    except Exception as error:  # a plugin's code: anything can come out
        raise PluginError(
            f"the weight reader {reader.name!r} could not read a file",
            where=f"{path}: {what}",
            found=f"{type(error).__name__}: {error}",
            fix="correct the file or the plugin; SURGERY_DISABLE_PLUGINS leaves the plugin out",
        ) from error


def _wrong(reader: WeightReader, path: Path, expected: str, found: str) -> PluginError:
    return PluginError(
        f"the weight reader {reader.name!r} returned something else than it should",
        where=str(path),
        expected=expected,
        found=found,
        fix=f"correct open of WeightReader({reader.name!r})",
    )
