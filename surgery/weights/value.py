"""The values: one tensor's facts, and the lazy ``Weights`` of a whole source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol

from surgery.errors import AddressError
from surgery.shown import Shown

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Attributes:
        shape: its sizes.
        dtype: of its elements.
        nbytes: what its elements take: their number times the size of one.
        aliases: other names that stand for the very same bytes (tied weights), where that is
            known. Parts of one storage that merely lie side by side are no aliases. A name
            that the source only mentions as tied to this one (safetensors stores such a tensor
            once) is among them, and can be read, but is no key of ``Weights.tensors``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    aliases: tuple[str, ...] = ()


class Store(Protocol):
    """Where the tensors of one source come from; one class for files, one for memory."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, detached, on the CPU where it comes from a file."""

    def read_many(self, names: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """These tensors in the order of the source; aliases among them are one tensor."""


@dataclass(frozen=True, eq=False, repr=False)
class Weights(Shown):
    """A source of tensors, opened and looked over, with none of them read.

    ``surgery.weights.read`` makes one. It holds no file open; every read opens the file again
    and refuses where it is no longer the same.

    Attributes:
        origin: the path, ``dict``, or ``model`` and its class.
        format: ``safetensors``, ``pytorch zip``, ``pytorch legacy``, the same after ``sharded``,
            ``dict``, ``model``, or the name of a plugin's reader.
        tensors: facts by name, in the order of the source.
        metadata: the ``__metadata__`` of a safetensors file; of a state dict the versions of its
            modules, as text by address (``{"bn1": "2"}``).
        chosen: which entry of a training checkpoint was taken, ``state_dict`` or ``ema.module``;
            None where the tensors lie at the top.
        notes: what else there is to say: what else lay in the file, and how it is read.
    """

    origin: str
    format: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    chosen: str | None
    notes: tuple[str, ...]
    _store: Store
    _mentioned: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Args:
            name: a name of ``tensors``, or an alias of one.

        Returns:
            The tensor, detached: a private copy, or where the file is mapped a tensor that
            reads from the map, and whose own writes stay private.

        Raises:
            AddressError: there is no such name; the closest are listed.
            ChangedFileError: the file is no longer as it was when it was opened.

        Example:
            >>> import torch
            >>> from surgery.weights import read
            >>> read({"fc.bias": torch.ones(2)}).read("fc.bias")
            tensor([1., 1.])
        """
        return self._store.read(self._known(name))

    def read_many(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Read several tensors, one after another, going through each file once.

        Args:
            names: names of ``tensors``, each once, in any order; all where left out.

        Yields:
            Name and tensor in the order of the source. Names that are aliases of each other get
            one and the same tensor, so that what was tied is tied.

        Raises:
            AddressError: there is no such name; raised before anything is read.
            ChangedFileError: a file is no longer as it was when it was opened.

        Example:
            >>> import torch
            >>> from surgery.weights import read
            >>> weights = read({"b": torch.ones(2), "a": torch.zeros(1)})
            >>> [name for name, tensor in weights.read_many(["a", "b"])]
            ['b', 'a']
        """
        asked = self.tensors if names is None else [self._listed(name) for name in names]
        return self._store.read_many(frozenset(asked))

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, those of aliases counted once."""
        seen: set[str] = set()
        total = 0
        for name, info in self.tensors.items():
            if name not in seen:
                total += info.nbytes
                seen.update(info.aliases)
        return total

    def __repr__(self) -> str:
        return f"Weights({self.origin!r}, {self.format!r}, {len(self.tensors):,} tensors)"

    def _known(self, name: str) -> str:
        return self._mentioned.get(name) or self._listed(name)

    def _listed(self, name: str) -> str:
        if name in self.tensors:
            return name
        close = get_close_matches(str(name), self.tensors, n=3)
        raise AddressError(
            f"there is no tensor {name!r}",
            where=self.origin,
            expected=", ".join(map(repr, close)) if close else f"one of {len(self.tensors)} names",
            found=repr(name),
            fix=f"weights.read({close[0]!r})" if close else "list(weights.tensors)",
        )
