"""Hooks of Hugging Face's accelerate, that bring weights to a device while a layer runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from surgery.families import Wrapping, hookimpl

if TYPE_CHECKING:
    pass

ELSEWHERE = (
    "the weights of this layer are kept elsewhere and brought back whenever it runs: what is put "
    "here would be written over"
)


def hooks(hook: Any) -> Iterator[Any]:
    """A hook, or those that one holds."""
    for inner in getattr(hook, "hooks", (hook,)):
        yield from (inner,) if inner is hook else hooks(inner)


def offloaded(module: Any, inside: str, filled: bool) -> str:
    """Whether a hook of this module keeps the weight at an address inside it."""
    for hook in hooks(module._hf_hook):
        deep = getattr(hook, "place_submodules", False)
        if getattr(hook, "offload", False) and (deep or "." not in inside):
            return ELSEWHERE
    return ""


def unhooked(module: Any) -> None:
    """The module's own forward."""
    state = vars(module)
    state.pop("_hf_hook")
    if "_old_forward" in state:
        module.forward = state.pop("_old_forward")


DISPATCHED = Wrapping(
    "dispatched layer",
    attribute="_hf_hook",
    bare=unhooked,
    refuses=offloaded,
    remedy="accelerate.hooks.remove_hook_from_module(model.get_submodule('{address}')), which "
    "brings its weights back, then operate",
)


@hookimpl
def surgery_wrappings() -> Sequence[Wrapping]:
    """Register the hooks of accelerate."""
    return [DISPATCHED]
