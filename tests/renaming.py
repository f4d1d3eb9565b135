"""Rename the attributes of a model that goes on running: locating must not depend on names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from torch import nn

# Names that lead astray: each is a head in some library and a feature layer in another.
_NAMES = """
fc classifier head score logits out last_linear heads cls aux proj project embedding features
backbone stem base encoder body trunk layer1 conv1 norm net a _b x9 weights bias_ model inner
module_ main one two drei tail neck foot arm leg toe num_heads Upper CamelCase
"""
NAMES = tuple(_NAMES.split())


def _by_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _may_rename(module: nn.Module) -> bool:
    # torch's own layers go by the names of their parameters, and lists and dicts by their keys,
    # which are no names but data. A Sequential only goes by order.
    return isinstance(module, nn.Sequential) or not _by_torch(module)


def renameable(model: nn.Module) -> tuple[str, ...]:
    """Every attribute name that ``rename`` can change, sorted."""
    return tuple(
        sorted(
            {
                name
                for module in model.modules()
                if _may_rename(module)
                for members in (module._modules, module._parameters, module._buffers)
                for name in members
            }
        )
    )


def renamings(model: nn.Module) -> st.SearchStrategy[dict[str, str]]:
    """A new name for every attribute of a model, none of them in use."""
    old = renameable(model)
    taken = _taken(model)
    free = [name for name in (*NAMES, *(f"n{i}" for i in range(len(old)))) if name not in taken]
    return st.permutations(free).map(lambda new: dict(zip(old, new, strict=False)))


def _taken(model: nn.Module) -> set[str]:
    # dir() leaves out names that start with a digit.
    return {name for module in model.modules() for name in (*dir(module), *module._modules)}


def _addresses(model: nn.Module) -> list[str]:
    return [
        *(name for name, _ in model.named_modules(remove_duplicate=False)),
        *(name for name, _ in model.named_parameters(remove_duplicate=False)),
        *(name for name, _ in model.named_buffers(remove_duplicate=False)),
    ]


def rename(model: nn.Module, mapping: Mapping[str, str]) -> dict[str, str]:
    """Rename modules, parameters and buffers wherever they bear one of these names, in place.

    The model still runs: each module's class gets a subclass that finds the old names, which its
    forward uses, under the new ones. Parameters inside torch's own layers, places in lists and
    keys of dicts keep their names.

    Args:
        model: any module.
        mapping: old name -> new name, single names and not addresses. New names must be unused.

    Returns:
        Old address -> new address, of every module, parameter and buffer.

    Raises:
        ValueError: a new name is in use, or two old ones get the same.
    """
    clash = sorted(_taken(model).intersection(mapping.values()))
    if clash or len(set(mapping.values())) < len(mapping):
        raise ValueError(f"new names must be unused and different: {clash or dict(mapping)}")
    before = _addresses(model)
    for module in list(model.modules()):
        if _may_rename(module):
            _rename_one(module, mapping)
    return dict(zip(before, _addresses(model), strict=True))


def _rename_one(module: nn.Module, mapping: Mapping[str, str]) -> None:
    for members in (module._modules, module._parameters, module._buffers):
        items: list[tuple[str, Any]] = [(mapping.get(k, k), v) for k, v in members.items()]
        members.clear()
        members.update(items)
    persistent = {mapping.get(name, name) for name in module._non_persistent_buffers_set}
    module._non_persistent_buffers_set = persistent
    base: Any = type(module)

    class Renamed(base):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(mapping.get(name, name))

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(mapping.get(name, name), value)

    Renamed.__name__, Renamed.__qualname__ = base.__name__, base.__qualname__
    Renamed.__module__ = base.__module__
    module.__class__ = Renamed
