"""What two layers differ in although their tensors have the same shapes.

A convolution with another stride, a normalisation with another eps, a block with another
activation: no shape tells. All plain attributes of both modules are compared, whatever their
classes are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from surgery import tree

# What every module has, and what changes no value that comes out.
_APART = frozenset(nn.Module().__dict__) | {"training", "inplace"}
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Difference:
    """One thing in which a layer of the donor and one of the recipient differ.

    Attributes:
        donor: the donor's address.
        recipient: the recipient's.
        what: ``class``, or the name of the attribute; empty for one that has no counterpart.
        theirs: what the donor has, in words.
        ours: what the recipient has, in words.
    """

    donor: str
    recipient: str
    what: str
    theirs: str
    ours: str

    def __str__(self) -> str:
        where = self.recipient or "the model"
        what = f" {self.what}" if self.what else ""
        source = "" if self.donor == self.recipient else f" ({self.donor or 'the model'})"
        return f"{where}{what}: {self.theirs} in the donor{source}, {self.ours} in the recipient"


def differences_of(
    donor: nn.Module, recipient: nn.Module, there: str, here: str
) -> Iterator[Difference]:
    """What two modules differ in, their children and tensors aside.

    Args:
        donor: one module.
        recipient: the other.
        there: the first one's address.
        here: the other's.

    Example:
        >>> one, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=2)
        >>> [str(each) for each in differences_of(one, other, "stem", "stem")]
        ['stem stride: (1, 1) in the donor, (2, 2) in the recipient']
    """
    theirs, ours = class_of(donor), class_of(recipient)
    if theirs != ours:
        yield Difference(there, here, "class", theirs, ours)
        return
    found = list(_attributes(donor, recipient, there, here, private=False))
    # What is private mostly follows from what is public, and would be told twice.
    yield from found or _attributes(donor, recipient, there, here, private=True)


def class_of(module: nn.Module) -> str:
    """The class of a module, as it was before parametrizations, which make one of their own."""
    return tree.class_name(parametrize.type_before_parametrizations(module))


def _attributes(
    donor: nn.Module, recipient: nn.Module, there: str, here: str, private: bool
) -> Iterator[Difference]:
    one, other = vars(donor), vars(recipient)
    for name in dict.fromkeys((*one, *other)):
        if name in _APART or name.startswith("_") is not private:
            continue
        if name not in one or name not in other:
            if not private and is_plain(one.get(name, other.get(name))):
                shown = (_shown(each[name]) if name in each else "no such" for each in (one, other))
                yield Difference(there, here, name, *shown)
        elif _is_computed(donor, name):
            continue
        elif equal(one[name], other[name]) is False:
            yield Difference(there, here, name, _shown(one[name]), _shown(other[name]))


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether an attribute is made from parameters at every forward (old norms, pruning)."""
    return any(f"{name}{suffix}" in module._parameters for suffix in ("_orig", "_g"))


def is_plain(value: object) -> bool:
    """Whether a value is of a kind that is compared."""
    return equal(value, value) is not None


def equal(one: Any, other: Any) -> bool | None:
    """Whether two attributes are equal; None for what is of no kind that can be compared.

    Example:
        >>> equal((1, 2), [1, 2]), equal(float("nan"), float("nan")), equal(object(), 3)
        (True, True, None)
    """
    if isinstance(one, _SIMPLE) and isinstance(other, _SIMPLE):
        return _same_simple(one, other)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _same_values(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return _all(map(equal, one, other)) if len(one) == len(other) else False
    if isinstance(one, dict) and isinstance(other, dict):
        return _all(equal(one[k], other[k]) for k in one) if one.keys() == other.keys() else False
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        parts = [(p.func, p.args, p.keywords) for p in (one, other)]
        return equal(*parts)
    if _is_function(one) and _is_function(other):
        return one is other or _origin(one) == _origin(other)
    known = [_is_known(value) for value in (one, other)]
    return False if all(known) else None


def _all(verdicts: Iterator[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def _is_known(value: object) -> bool:
    kinds = (*_SIMPLE, torch.Tensor, list, tuple, dict, functools.partial)
    return isinstance(value, kinds) or _is_function(value)


def _same_simple(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool | None:
    if isinstance(one, nn.Parameter) or isinstance(other, nn.Parameter):
        # A list of a layer's own weights: those are brought over, not compared.
        return None
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_meta or other.is_meta or one.layout != torch.strided:
        return None
    return torch.equal(one.detach(), other.detach().to(one.device))


def _is_function(value: object) -> bool:
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return True
    # Functions of torch in C are of several types; they say where they are from.
    return callable(value) and hasattr(value, "__qualname__")


def _origin(value: Callable[..., Any]) -> tuple[object, ...]:
    code = getattr(value, "__code__", None)
    name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return (*name, *((code.co_code, code.co_consts) if code is not None else ()))


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = getattr(value, "__qualname__", None) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
