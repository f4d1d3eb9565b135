"""Where each operation of a recorded forward pass runs: on ``meta``, or for real.

On ``meta``, an operation with any ``meta`` argument runs on ``meta``; one with only real arguments
runs for real. Integers and booleans that the code makes on the model's device, or moves there, stay
real: masks, positions and indices then have values, and value-dependent code just runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.graph.operators import Behaviour, aliased, argument_at, behaviour, flat_tensors
from surgery.graph.skeleton import is_floating
from surgery.graph.structure import replace_tensors

# Integer tensors made in forward stay real up to this many elements (a 4096 x 4096 mask).
REAL_CREATION_LIMIT = 1 << 24
# Stand-ins of activations are filled with zeros up to this size where indices are real.
REAL_FALLBACK_LIMIT = 1 << 26


class ValueNeededError(RuntimeError):
    """The forward pass asked for the value of a tensor that has none on ``meta``."""


class Observer(Protocol):
    """Told of every operation after it ran."""

    def note(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
        result: Any,
    ) -> None:
        """Write the operation down."""


# The shapes of their results come from the values of boolean masks, which are often real.
_SHAPED_BY_MASKS = frozenset(
    f"aten::{name}"
    for name in ("index", "index_put", "index_put_", "_index_put_impl_", "masked_select")
)
# Its batch sizes come from the lengths alone, and the layers that read them want values.
_PACK = "aten::_pack_padded_sequence"


class Execution(TorchDispatchMode):
    """Decides where every operation of a forward pass runs, and tells an observer of it.

    Args:
        stand_ins: by ``id`` of a tensor of the model itself, the stand-in to use instead;
            closures over the model still reach the originals.
        observer: told of every operation, or None.
    """

    def __init__(self, stand_ins: dict[int, torch.Tensor], observer: Observer | None) -> None:
        super().__init__()
        self.stand_ins = stand_ins
        self.observer = observer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing compiles while recording, and the guard against it costs as much as the rest.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        known = behaviour(func)
        if known.composite:
            with self:
                return func.decompose(*args, **kwargs)
        given = flat_tensors(args, kwargs)
        stand_ins = self.stand_ins
        if any(id(tensor) in stand_ins for tensor in given):
            args, kwargs = self._substituted(args, kwargs)
            given = flat_tensors(args, kwargs)
        result = self.execute(func, known, args, kwargs, given)
        if self.observer is not None:
            self.observer.note(func, known, args, kwargs, given, result)
        return result

    def _substituted(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def swap(tensor: torch.Tensor) -> torch.Tensor:
            return self.stand_ins.get(id(tensor), tensor)

        return replace_tensors(args, swap), replace_tensors(kwargs, swap)

    def execute(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
    ) -> Any:
        """Run one operation."""
        return func(*args, **kwargs)


class RealExecution(Execution):
    """Runs everything for real, and puts back what forward writes into the model's parameters.

    Stand-ins of parameters share their storage with the model; those of buffers are copies.
    """

    def __init__(self, stand_ins: dict[int, torch.Tensor], observer: Observer | None) -> None:
        super().__init__(stand_ins, observer)
        self.shared = {
            stand_in.untyped_storage()._cdata: stand_in
            for stand_in in stand_ins.values()
            if isinstance(stand_in, torch.nn.Parameter) and stand_in.layout == torch.strided
        }
        self.backups: dict[int, torch.Tensor] = {}

    def execute(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
    ) -> Any:
        """Run one operation, after a backup of any parameter it writes into."""
        for key in known.written:
            for tensor in flat_tensors((argument_at(args, kwargs, key),), {}):
                storage = tensor.untyped_storage()._cdata
                if storage in self.shared and storage not in self.backups:
                    self.backups[storage] = self.shared[storage].detach().clone()
        return func(*args, **kwargs)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        with torch.no_grad():
            for storage, backup in self.backups.items():
                # ``data`` leaves the version counter of the model's own parameter alone.
                self.shared[storage].data.copy_(backup)
        self.backups.clear()


class MetaExecution(Execution):
    """Runs every operation where it belongs, and computes nothing with floating-point state."""

    def __init__(self, stand_ins: dict[int, torch.Tensor], observer: Observer | None) -> None:
        super().__init__(stand_ins, observer)
        # Real storages that a meta operation wrote into: they count as meta from then on.
        self.poisoned: dict[int, torch.UntypedStorage] = {}

    def execute(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
    ) -> Any:
        """Run one operation on meta or for real."""
        metas = sum(tensor.is_meta for tensor in given)
        if metas == len(given) and given:
            return self._all_meta(func, known, args, kwargs, given)
        if metas or (self.poisoned and any(self._counts_as_meta(tensor) for tensor in given)):
            return self._mixed(func, known, args, kwargs)
        return self._all_real(func, known, args, kwargs, given)

    def _counts_as_meta(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or tensor.untyped_storage()._cdata in self.poisoned

    def _all_meta(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
    ) -> Any:
        if known.needs_values:
            raise ValueNeededError("the forward pass reads the value of a tensor")
        if known.has_device:
            if known.creates:
                real = self._created(func, args, kwargs)
                if real is not None:
                    return real
            if kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
                kwargs = {key: kwargs[key] for key in kwargs if key in _names(func)}
        return func(*args, **kwargs)

    def _mixed(
        self, func: Any, known: Behaviour, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if known.needs_values:
            raise ValueNeededError("the forward pass reads the value of a tensor")
        name = func._schema.name
        if name == _PACK:
            return self._on_zeros(func, args, kwargs, keep_integers=True)
        if name in _SHAPED_BY_MASKS and self._masked_by_values(args):
            result = self._on_zeros(func, args, kwargs, keep_integers=False)
        else:
            result = func(
                *replace_tensors(args, _to_meta),
                **replace_tensors(_on_meta_device(kwargs), _to_meta),
            )
        for key in known.written:
            for tensor in flat_tensors((argument_at(args, kwargs, key),), {}):
                if not tensor.is_meta:
                    storage = tensor.untyped_storage()
                    self.poisoned[storage._cdata] = storage
        return _same_object(known, args, kwargs, result)

    def _masked_by_values(self, args: tuple[Any, ...]) -> bool:
        masks = [m for m in flat_tensors(args[1:2], {}) if m.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and not any(self._counts_as_meta(mask) for mask in masks)

    def _all_real(
        self,
        func: Any,
        known: Behaviour,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[torch.Tensor],
    ) -> Any:
        device = kwargs.get("device") if known.has_device else None
        if device is None or torch.device(device).type == "cpu":
            return func(*args, **kwargs)
        if not given:
            real = self._created(func, args, kwargs)
            if real is not None:
                return real
            return func(*args, **_on_meta_device(kwargs))
        return func(*args, **{**kwargs, "device": torch.device("cpu")})

    def _created(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an integer tensor for real; None where it is floating point or too large."""
        shape = func(*args, **_on_meta_device(kwargs))
        if is_floating(shape.dtype) or shape.numel() > REAL_CREATION_LIMIT:
            return None
        if behaviour(func).creates == "empty":
            return torch.zeros(shape.shape, dtype=shape.dtype)
        return func(*args, **{**kwargs, "device": torch.device("cpu")})

    def _on_zeros(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep_integers: bool
    ) -> Any:
        """Run with real indices on zeros in place of what has no value, for the shapes."""
        elements = sum(t.numel() for t in flat_tensors(args, kwargs) if t.is_meta)
        if elements > REAL_FALLBACK_LIMIT:
            raise ValueNeededError(f"{func} needs {elements} values to know its shape")

        def zeros(tensor: torch.Tensor) -> torch.Tensor:
            if not self._counts_as_meta(tensor):
                return tensor
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

        result = func(*replace_tensors(args, zeros), **replace_tensors(kwargs, zeros))

        def back(tensor: torch.Tensor) -> torch.Tensor:
            keep = keep_integers and not is_floating(tensor.dtype)
            return tensor if keep else _to_meta(tensor)

        return replace_tensors(result, back)


def _names(func: Any) -> frozenset[str]:
    return frozenset(argument.name for argument in func._schema.arguments)


def _on_meta_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": torch.device("meta")} if "device" in kwargs else kwargs


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _same_object(
    known: Behaviour, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    """An in-place operation returns the tensor it was given, not a meta twin of it."""
    if not known.written or not isinstance(result, torch.Tensor):
        return result
    original = aliased(known, args, kwargs, 0)
    return original if original is not None and not original.is_meta else result


_CONSTRUCTORS: frozenset[Callable[..., Any]] = frozenset(
    {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
)


class RealConstants(TorchFunctionMode):
    """Keeps ``torch.tensor(values, device=model_device)`` real.

    A dispatch mode cannot: the values are gone before it is asked. It costs a Python call for
    every torch function, so the recorder tries without it first.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _CONSTRUCTORS:
            return func(*args, **kwargs)
        if func is torch.Tensor.new_tensor:
            source = args[0]
            kwargs = {"dtype": source.dtype, **kwargs}
            func, args = torch.tensor, args[1:]
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "cpu":
            kwargs = {**kwargs, "device": None}
        return func(*args, **kwargs)
