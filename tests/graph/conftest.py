"""What a recording must leave alone, as one value that can be compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surgery import tree


def _bytes(tensor: torch.Tensor) -> object:
    if tensor.is_meta:
        return None
    return tensor.detach().reshape(-1).view(torch.uint8).clone().numpy().tobytes()


def _tensor(tensor: torch.Tensor) -> tuple[object, ...]:
    version = None if tensor.is_inference() else tensor._version
    grad = _bytes(tensor.grad) if tensor.is_leaf and tensor.grad is not None else None
    facts = (tensor.dtype, tensor.device, tensor.requires_grad, tensor.shape, tensor.stride())
    return (id(tensor), version, _bytes(tensor), grad, *facts)


def state_of(model: nn.Module) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Everything a model holds: tensors bit for bit, attributes, hooks, train flags."""
    tensors = {
        entry.addresses: _tensor(entry.tensor) for entry in tree.index(model).tensors.values()
    }
    modules = {
        name: (id(module), module.training, list(module.__dict__), _identities(module))
        for name, module in model.named_modules(remove_duplicate=False)
    }
    return tensors, modules


def _identities(module: nn.Module) -> dict[str, object]:
    return {
        key: (id(value), list(value) if isinstance(value, dict) else repr(value)[:200])
        for key, value in module.__dict__.items()
        if not isinstance(value, torch.Tensor | nn.Module)
    }


def surroundings() -> object:
    """The random states and switches of the process."""
    _, keys, *rest = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        (keys.tobytes(), *rest),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
    )


@pytest.fixture
def untouched() -> Callable[..., AbstractContextManager[None]]:
    """A context in which a model, more tensors and the process must stay as they were."""

    @contextmanager
    def check(model: nn.Module, *tensors: torch.Tensor) -> Iterator[None]:
        def now() -> list[Any]:
            return [state_of(model), [_tensor(tensor) for tensor in tensors], surroundings()]

        before = now()
        yield
        after = now()
        for old, new in zip(before[0], after[0], strict=True):
            assert new.keys() == old.keys()
            for key in old:
                assert new[key] == old[key], key
        assert after[1] == before[1]
        assert after[2] == before[2]

    return check
