"""Whether a model is what it was, after an operation is undone."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.families import FailedError, require
from surgery import tree
from surgery.facts import find_facts
from surgery.graph.example import Example
from surgery.graph.structure import replace_tensors
from surgery.operations.plan import Outcome


def snapshot(model: nn.Module) -> dict[str, object]:
    """Every tensor by identity and bytes, and every fact."""
    found: dict[str, object] = {}
    for entry in tree.index(model).of_kind("parameter", "buffer"):
        tensor = entry.tensor.detach()
        raw = None
        if not tensor.is_meta:
            plain = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            raw = hashlib.blake2b(plain.data).hexdigest()
        found[entry.address] = (id(entry.tensor), tensor.shape, tensor.dtype, raw)
    facts = {fact.address: fact.classes for fact in find_facts(model)}
    config = getattr(model, "config", None)
    return {**found, "facts": facts, "labels": copy.deepcopy(getattr(config, "id2label", None))}


def real(model: nn.Module, example: Example) -> Example:
    """The example where the model is: inferred ones are on meta."""
    device = next(model.parameters()).device

    def there(tensor: torch.Tensor) -> torch.Tensor:
        stays = tensor.device == device or device.type == "meta"
        return tensor if stays else torch.zeros_like(tensor, device=device)

    args, kwargs = replace_tensors((example.args, dict(example.kwargs)), there)
    return dataclasses.replace(example, args=args, kwargs=kwargs)


def there_and_back(
    model: nn.Module, operate: Callable[[], Outcome], look: Callable[[Outcome], None]
) -> None:
    """An operation, a look at what it made, and what was there before.

    What a model puts into its buffers when it first runs is its own: then all is done again.
    """
    changed: list[str] = []
    for _ in range(2):
        before = snapshot(model)
        outcome = operate()
        look(outcome)
        require(outcome.undo() is model, "undo gave another model")
        after = snapshot(model)
        changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        if not changed:
            return
    raise FailedError(f"not what they were: {sorted(changed)[:3]}")
