"""Normalisation layers that keep their running statistics, whatever mode the model is in."""

from __future__ import annotations

from torch import nn


class StaysInEval:
    """Takes the place of one module's ``train``: the module answers as in eval mode, always.

    An attribute of the module, so that it goes along with ``copy.deepcopy`` and ``pickle`` (which
    needs ``surgery`` to be importable when it is read), and costs nothing in forward, compiled or
    not. A ``state_dict`` does not carry it into another model.

    Args:
        module: the module that stays in eval mode.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        """What ``module.train(mode)`` does now: nothing."""
        self.module.training = False
        return self.module

    def __repr__(self) -> str:
        return "stays in eval mode"


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a layer updates running statistics in train mode, by what it holds, not its class."""
    return module._buffers.get("running_mean") is not None


def stays_in_eval(module: nn.Module) -> bool:
    """Whether a layer was told to stay in eval mode."""
    return isinstance(module.__dict__.get("train"), StaysInEval)
