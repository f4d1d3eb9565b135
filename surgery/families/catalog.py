"""A catalog that is listed when somebody asks for it: that of a library with many models.

Nothing here imports torch, so that a plugin costs nothing until it is asked.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import nn

Builder: TypeAlias = "str | Callable[..., nn.Module]"


class Catalog(Mapping[str, "Builder"]):
    """The names that a library builds, found out on first use.

    Its names need their package in front (``package:name``): with as many names as a library has,
    a bare one would soon be that of two. A name may be built and not be listed (a directory).

    Args:
        names: lists the names. It must not import the library, as completion asks for them. What
            it raises is a warning, and then there are none.
        find: what builds a name, ``package.module:callable`` or the callable itself, or None
            where nothing does.

    Example:
        >>> from surgery.families.catalog import Catalog
        >>> catalog = Catalog(lambda: ["Linear"], {"Linear": "torch.nn:Linear"}.get)
        >>> list(catalog), catalog["Linear"], "Conv" in catalog
        (['Linear'], 'torch.nn:Linear', False)
    """

    def __init__(
        self, names: Callable[[], Iterable[str]], find: Callable[[str], Builder | None]
    ) -> None:
        self._names = names
        self._find = find

    @functools.cached_property
    def _listed(self) -> tuple[str, ...]:
        try:
            return tuple(self._names())
        except Exception as error:  # a plugin's code: anything can come out
            warnings.warn(
                f"{self!r} could not be listed ({type(error).__name__}: {error}) and is empty",
                stacklevel=2,
            )
            return ()

    def __getitem__(self, name: str) -> Builder:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)

    # A mapping would be listed to be compared, and so would every family that has it.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Catalog({getattr(self._names, '__qualname__', self._names)!r})"
