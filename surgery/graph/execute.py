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
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass_type,
)

from surgery.graph import remembered
from surgery.graph.operators import Call, argument_at, behaviour, flat_tensors, results
from surgery.graph.skeleton import is_floating
from surgery.graph.structure import replace_tensors

_META = torch.device("meta")
# Integer tensors made in forward stay real up to this many elements (a 4096 x 4096 mask).
REAL_CREATION_LIMIT = 1 << 24
# Stand-ins of activations are filled with zeros up to this size where indices are real.
REAL_FALLBACK_LIMIT = 1 << 26


class ValueNeededError(RuntimeError):
    """The forward pass asked for the value of a tensor that has none on ``meta``."""


class Observer(Protocol):
    """Told of every operation after it ran."""

    def note(self, call: Call, result: Any) -> None:
        """Write the operation down."""


# The shapes of their results come from the values of boolean masks, which are often real.
_SHAPED_BY_MASKS = frozenset(
    f"aten::{name}"
    for name in ("index", "index_put", "index_put_", "_index_put_impl_", "masked_select")
)
# They update running statistics, and their schemas do not say so.
_WRITTEN_UNSAID = {
    f"aten::{name}": (3, 4)
    for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
}
# Its batch sizes come from the lengths alone, and the layers that read them want values.
_PACK = "aten::_pack_padded_sequence"


class Execution(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Decides where every operation of a forward pass runs, and tells an observer of it.

    What forward writes into memory that it did not make itself (a global, a closed-over tensor,
    a parameter whose stand-in shares its values) is put back at the end.

    Args:
        stand_ins: by ``id`` of a tensor of the model itself, the stand-in to use instead;
            closures over the model still reach the originals.
        observer: told of every operation, or None.
    """

    def __init__(self, stand_ins: dict[int, torch.Tensor], observer: Observer | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stand_ins = stand_ins
        self.observer = observer
        # Originals that the code reached, by ``id``, with their version before that.
        self.reached: dict[int, tuple[torch.Tensor, int]] = {}
        # Storages that the recording made. What was there before keeps its address, so that an
        # address in here is never that of something older.
        self.made: set[int] = set()
        self.backups: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

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
        # A tensor made of others, a nested one: it says what is done with those, and that is seen.
        if types and any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented
        kwargs = kwargs or {}
        known = behaviour(func)
        if known.composite:
            with self:
                return func.decompose(*args, **kwargs)
        given = flat_tensors((*args, *kwargs.values()) if kwargs else args)
        call = Call(func, known, args, kwargs, given)
        stand_ins = self.stand_ins
        for tensor in given:
            if id(tensor) in stand_ins:
                self._substitute(call)
                break
        result = self.execute(call)
        if self.observer is not None:
            self.observer.note(call, result)
        return result

    def _substitute(self, call: Call) -> None:
        def swap(tensor: torch.Tensor) -> torch.Tensor:
            stand_in = self.stand_ins.get(id(tensor))
            if stand_in is None:
                return tensor
            self._reach(tensor)
            return stand_in

        call.args = replace_tensors(call.args, swap)
        call.kwargs = replace_tensors(call.kwargs, swap)
        call.given = [swap(tensor) for tensor in call.given]

    def _reach(self, tensor: torch.Tensor) -> None:
        if not tensor.is_inference():
            self.reached.setdefault(id(tensor), (tensor, tensor._version))

    def _spare(self, call: Call) -> None:
        """Back up the memory that an operation is about to write and the recording did not make."""
        written = call.written() if call.known.written else []
        places = _WRITTEN_UNSAID.get(call.func._schema.name, ())
        written += flat_tensors([argument_at(call.args, call.kwargs, place) for place in places])
        for tensor in written:
            if tensor.is_meta or tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.made:
                self._reach(tensor)
                if storage._cdata not in self.backups:
                    backup = storage.clone()  # type: ignore[no-untyped-call]
                    self.backups[storage._cdata] = (storage, backup)

    def _own(self, call: Call, result: Any) -> None:
        """Remember what an operation made: memory that forward is free to write."""
        for place, tensor in enumerate(results(result)):
            new = call.known.returns_new or call.aliased(place) is None
            if new and tensor.layout == torch.strided:
                self.made.add(tensor.untyped_storage()._cdata)

    def close(self) -> None:
        """Put back what the forward pass did to tensors that were there before it."""
        # Autograd counts a write before it asks where to run it. Views count together with their
        # base, so the first that was reached has the last word.
        reached = list(reversed(self.reached.values()))
        originals = tuple(tensor for tensor, _ in reached)
        versions = tuple(version for _, version in reached)
        torch._C._autograd._unsafe_set_version_counter(originals, versions)
        for storage, backup in self.backups.values():
            if storage.nbytes() != backup.nbytes():
                storage.resize_(backup.nbytes())
            # A storage has no version counter: autograd does not notice.
            storage.copy_(backup)
        self.backups.clear()

    def execute(self, call: Call) -> Any:
        """Run one operation."""
        return call.func(*call.args, **call.kwargs)


class RealExecution(Execution):  # type: ignore[no-untyped-call]
    """Runs everything for real.

    Stand-ins of parameters share their storage with the model; those of buffers are copies.
    """

    def execute(self, call: Call) -> Any:
        """Run one operation, after a backup of what it writes into."""
        self._spare(call)
        result = call.func(*call.args, **call.kwargs)
        self._own(call, result)
        return result


class MetaExecution(Execution):  # type: ignore[no-untyped-call]
    """Runs every operation where it belongs, and computes nothing with floating-point state.

    Args:
        stand_ins: see above.
        observer: see above.
        constants: keep what forward makes of nothing real in floating point too: a mask of ones
            may be asked whether it masks anything.
    """

    def __init__(
        self,
        stand_ins: dict[int, torch.Tensor],
        observer: Observer | None,
        *,
        constants: bool = False,
    ) -> None:
        super().__init__(stand_ins, observer)
        self.constants = constants
        # Real storages that a meta operation wrote into: they count as meta from then on.
        self.poisoned: dict[int, torch.UntypedStorage] = {}
        for stand_in in stand_ins.values():
            if not stand_in.is_meta and stand_in.layout == torch.strided:
                self.made.add(stand_in.untyped_storage()._cdata)

    def execute(self, call: Call) -> Any:
        """Run one operation on meta or for real."""
        metas = 0
        for tensor in call.given:
            metas += tensor.is_meta
        if metas and metas == len(call.given):
            return self._all_meta(call)
        if metas or (self.poisoned and any(map(self._counts_as_meta, call.given))):
            return self._mixed(call)
        self._spare(call)
        result = self._all_real(call)
        self._own(call, result)
        return result

    def _counts_as_meta(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or tensor.untyped_storage()._cdata in self.poisoned

    def _all_meta(self, call: Call) -> Any:
        known = call.known
        if known.returns_new:
            return remembered.run(call)
        if known.needs_values:
            raise ValueNeededError("the forward pass reads the value of a tensor")
        if known.has_device:
            if known.creates:
                real = self._created(call)
                if real is not None:
                    return real
            if call.kwargs.get("device") is not None:
                call.kwargs = _on_meta_device(call.kwargs)
        return call.func(*call.args, **call.kwargs)

    def _mixed(self, call: Call) -> Any:
        if call.known.needs_values:
            raise ValueNeededError("the forward pass reads the value of a tensor")
        for tensor in call.written() if call.known.written else ():
            self._reach(tensor)
        name = call.func._schema.name
        if name == _PACK:
            return self._on_zeros(call, keep_integers=True)
        if name in _SHAPED_BY_MASKS and self._masked_by_values(call.args):
            result = self._on_zeros(call, keep_integers=False)
        else:
            result = self._on_meta(call)
        for tensor in call.written() if call.known.written else ():
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.poisoned[storage._cdata] = storage
        return _same_object(call, result)

    def _on_meta(self, call: Call) -> Any:
        args = replace_tensors(call.args, _to_meta)
        kwargs = replace_tensors(_on_meta_device(call.kwargs), _to_meta)
        if not call.known.returns_new:
            return call.func(*args, **kwargs)
        given = [_to_meta(tensor) for tensor in call.given]
        return remembered.run(Call(call.func, call.known, args, kwargs, given))

    def _masked_by_values(self, args: tuple[Any, ...]) -> bool:
        masks = [m for m in flat_tensors(args[1:2]) if m.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and not any(self._counts_as_meta(mask) for mask in masks)

    def _all_real(self, call: Call) -> Any:
        func, args, kwargs = call.func, call.args, call.kwargs
        device = kwargs.get("device") if call.known.has_device else None
        if device is None or torch.device(device).type == "cpu":
            return func(*args, **kwargs)
        if not call.given:
            real = self._created(call)
            if real is not None:
                return real
            return func(*args, **_on_meta_device(kwargs))
        return func(*args, **{**kwargs, "device": torch.device("cpu")})

    def _created(self, call: Call) -> Any:
        """Make a constant for real; None where it is too large, or floating point unasked."""
        func, args, kwargs = call.func, call.args, call.kwargs
        shape = func(*args, **_on_meta_device(kwargs))
        # What is made like a tensor may be its gradient, which stays where the tensor is.
        asked = self.constants and not call.func._schema.name.endswith("_like")
        if shape.numel() > REAL_CREATION_LIMIT or (is_floating(shape.dtype) and not asked):
            return None
        if call.known.creates == "empty":
            return torch.zeros(shape.shape, dtype=shape.dtype)
        return func(*args, **{**kwargs, "device": torch.device("cpu")})

    def _on_zeros(self, call: Call, *, keep_integers: bool) -> Any:
        """Run with real indices on zeros in place of what has no value, for the shapes."""
        elements = sum(tensor.numel() for tensor in call.given if tensor.is_meta)
        if elements > REAL_FALLBACK_LIMIT:
            raise ValueNeededError(f"{call.known.name} needs {elements} values to know its shape")

        def zeros(tensor: torch.Tensor) -> torch.Tensor:
            if not self._counts_as_meta(tensor):
                return tensor
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

        self._spare(call)
        args, kwargs = replace_tensors(call.args, zeros), replace_tensors(call.kwargs, zeros)
        result = call.func(*args, **kwargs)

        def back(tensor: torch.Tensor) -> torch.Tensor:
            keep = keep_integers and not is_floating(tensor.dtype)
            return tensor if keep else _to_meta(tensor)

        return replace_tensors(result, back)


def _on_meta_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    if "device" not in kwargs:
        return kwargs
    changed = {**kwargs, "device": _META}
    if "pin_memory" in changed:
        changed["pin_memory"] = None
    return changed


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _same_object(call: Call, result: Any) -> Any:
    """An in-place operation returns the tensor it was given, not a meta twin of it."""
    if not call.known.written or not isinstance(result, torch.Tensor):
        return result
    original = call.aliased(0)
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
