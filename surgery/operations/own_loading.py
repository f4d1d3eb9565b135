"""The loading code of modules: what it renames is followed, what it computes is refused.

Layers with a history convert old checkpoints in ``_load_from_state_dict`` or in hooks before it.
They run here on a skeleton and on stand-ins for the source's tensors, whose new names show what
was renamed. No value is read, and the model is not touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.graph.quiet import quiet
from surgery.graph.skeleton import build_skeleton
from surgery.weights.value import TensorInfo

_TORCH = "torch."


@dataclass(frozen=True)
class Converted:
    """What the loading code of modules does with the keys of a source.

    Attributes:
        names: for keys that it renames, the names they get in the model.
        computed: names in the model for which it computes a tensor, and the module that does.
        failed: why the code of some modules did not run, by the module.
    """

    names: Mapping[str, str]
    computed: Mapping[str, str]
    failed: Mapping[str, str]


def has_own_loading(model: nn.Module) -> bool:
    """Whether a module has loading code of its own, other than torch's layers."""
    return any(_is_own(module) for _, module in tree.walk(model))


def converted(
    model: nn.Module,
    names: Mapping[str, str],
    infos: Mapping[str, TensorInfo],
    versions: Mapping[str, str],
) -> Converted:
    """Run the loading code of every module on stand-ins.

    Args:
        model: the model, out of its wrappers; it stays as it is.
        names: by key of the source its name in the model.
        infos: by key of the source.
        versions: of the modules when the source was made, by name, as text.
    """
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skeleton = build_skeleton(model).model
        stand_ins = {
            key: torch.empty(infos[key].shape, dtype=infos[key].dtype, device="meta")
            for key in names
        }
        state: dict[str, torch.Tensor] = {names[key]: each for key, each in stand_ins.items()}
        computed: dict[str, str] = {}
        failed: dict[str, str] = {}
        known = {id(each) for each in stand_ins.values()}
        for prefix, module in skeleton.named_modules(remove_duplicate=False):
            if not _is_own(module):
                continue
            where = prefix or "the model itself"
            trial = dict(state)
            try:
                _run(module, trial, tree.join(prefix, "") if prefix else "", versions.get(prefix))
            except Exception as error:  # a user's own code: anything can come out
                failed[where] = f"{type(error).__name__}: {error}"
                continue
            state = trial
            computed.update({k: where for k, v in state.items() if id(v) not in known})
    now = {id(tensor): name for name, tensor in state.items()}
    moved = {
        key: now[id(each)]
        for key, each in stand_ins.items()
        if id(each) in now and now[id(each)] != names[key]
    }
    return Converted(moved, computed, failed)


def _run(module: nn.Module, state: dict[str, Any], prefix: str, version: str | None) -> None:
    """The code of one module alone, which has nothing to copy into."""
    module._parameters.clear()
    module._buffers.clear()
    local = {"version": int(version)} if version is not None and version.isdigit() else {}
    lists: tuple[list[str], list[str], list[str]] = ([], [], [])
    module._load_from_state_dict(state, prefix, local, False, *lists)


def _is_own(module: nn.Module) -> bool:
    definer = next(cls for cls in type(module).__mro__ if "_load_from_state_dict" in vars(cls))
    return not definer.__module__.startswith(_TORCH) or any(_hooks(module))


def _hooks(module: nn.Module) -> Iterator[object]:
    """Hooks before loading that are not torch's own."""
    for wrapped in module._load_state_dict_pre_hooks.values():
        hook = getattr(wrapped, "hook", wrapped)
        where = getattr(hook, "__module__", None) or type(hook).__module__
        if not where.startswith(_TORCH):
            yield hook
