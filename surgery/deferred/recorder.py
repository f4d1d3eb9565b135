"""Run a constructor whose tensors cost nothing: what would fill them is recorded, not done.

Every tensor is an ordinary one on the CPU, over memory that nobody has touched and that therefore
takes none. Code in the constructor sees the device, dtype, type and identity that it always sees.
Where it reads a value, that value is computed then and there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.deferred.log import Call, Form, Log, Place
from surgery.deferred.nested import leaves_of, map_leaves, tensors_in
from surgery.deferred.operators import Traits, traits_of

# No range this wide is drawn by accident, and half precision holds no wider one.
_LARGE = 1e4


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what is done to tensors without values, and settles those whose values are read.

    Attributes:
        log: what was recorded.
        waiting: number and storage of every storage without values, by its identity.
        notes: what could not wait, and why.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = Log()
        self.waiting: dict[int, tuple[int, torch.UntypedStorage]] = {}
        self.notes: dict[str, None] = {}
        # Where the next ordinary number comes from, and how the generator was left.
        self._state = self._left = torch.get_rng_state()
        self._busy = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._busy:
            return func(*args, **kwargs)
        traits = traits_of(func)
        if traits.repoints or (traits.moves and _stays(*args[:2])):
            return func(*args, **kwargs)
        tensors = [*tensors_in(args), *tensors_in(kwargs)]
        waits = any(self.number(tensor) is not None for tensor in tensors)
        if not (waits or traits.factory or traits.draws):
            return func(*args, **kwargs)
        if self._deferrable(traits, tensors, traits.bind(args, kwargs)):
            done, result = self._defer(func, traits, args, kwargs)
            if done:
                return result
        self.settle(tensors, f"{traits.name} needs its values")
        return func(*args, **kwargs)

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of a tensor's storage, where it has no values yet."""
        if not is_plain(tensor):
            return None
        found = self.waiting.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]

    def adopt(self, tensor: torch.Tensor, *, copy: bool = True) -> int:
        """Let a tensor with values wait as well: it has them as a constant."""
        storage = tensor.untyped_storage()
        with self.busy():
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            constant = flat.clone() if copy else flat
        number = self._wait(storage)
        place = Place(number, tuple(flat.shape), (1,), 0, torch.uint8)
        self._record(torch.ops.aten.clone.default, (constant,), {}, (), (), (place,))
        return number

    def settle(self, tensors: Iterable[torch.Tensor], why: str) -> None:
        """Give those of these tensors their values that have none, where they are."""
        storages = {tensor.untyped_storage()._cdata for tensor in tensors if is_plain(tensor)}
        self.settle_storages(storages & self.waiting.keys(), why)

    def settle_storages(self, storages: Iterable[int], why: str) -> None:
        """Give these storages their values; those that no longer wait are left out."""
        chosen = {cdata: self.waiting[cdata] for cdata in storages}
        if not chosen:
            return
        numbers = {number for number, _ in chosen.values()}
        if self.log.draws(numbers):
            self.notes[f"random numbers were drawn while constructing: {why}"] = None
        with self.busy(), self._own_numbers():
            values = self.log.replay(numbers)
            for number, storage in chosen.values():
                storage.copy_(values[number])
        for cdata in chosen:
            del self.waiting[cdata]

    def defer_call(self, function: Callable[..., Any], tensor: torch.Tensor, *rest: Any) -> None:
        """Record a whole function that fills one tensor with random numbers."""
        number = self.number(tensor)
        place = self.place(tensor, self.adopt(tensor) if number is None else number)
        writes = (place.storage,)
        self._record(function, (place, *rest), {}, (), writes, (), draws=True)

    def can_defer_call(self, tensor: torch.Tensor) -> bool:
        """Whether a function that fills this tensor can be recorded."""
        return not self._busy and is_plain(tensor) and not self._foreign()

    def origin(self) -> torch.Tensor | None:
        """Where ordinary draws left off, if the constructor has set the generator for good."""
        return self._state if self._foreign() else None

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Work on tensors that is not the constructor's."""
        before, self._busy = self._busy, True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self._busy = before

    def _deferrable(
        self, traits: Traits, tensors: list[torch.Tensor], bound: dict[str, Any]
    ) -> bool:
        if traits.moves or not traits.tensors or not all(map(is_plain, tensors)):
            return False
        device = bound.get("device")
        if device is not None and torch.device(device).type != "cpu":
            return False
        if bound.get("pin_memory") or bound.get("generator") is not None:
            return False
        if bound.get("layout") not in (None, torch.strided):
            return False
        return not (traits.draws and self._foreign())

    def _foreign(self) -> bool:
        """Whether the constructor has set the generator: what it draws then is no ordinary draw."""
        if not torch.equal(torch.get_rng_state(), self._left):
            return True
        if self._left is not self._state:
            # Back from where it was set for a while, in which ordinary numbers were drawn.
            torch.set_rng_state(self._state)
            self._left = self._state
        return False

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Draw where ordinary draws left off, also while the constructor has set the generator."""
        foreign = torch.get_rng_state() if self._foreign() else None
        torch.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.get_rng_state()
            if foreign is None:
                self._left = self._state
            else:
                torch.set_rng_state(foreign)

    def _defer(
        self, func: Any, traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bool, Any]:
        """Record a call instead of doing it, if its results follow from shapes."""
        bound = traits.bind(args, kwargs)
        if _only_fills(traits, bound):
            (tensor,) = args[:1]
            writes = self._written(traits, bound)
            place = self.place(tensor, *writes)
            self._record(func, (place, *args[1:]), kwargs, (), writes, (), draws=traits.draws)
            return True, tensor
        twins: dict[int, torch.Tensor] = {}
        try:
            meta_args, meta_kwargs = map_leaves(lambda x: _twin(x, twins), (args, kwargs))
            if "device" in traits.arguments:
                meta_kwargs["device"] = "meta"
            trial = func(*meta_args, **meta_kwargs)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
            # Either it has no form without values, or it is wrong: doing it will tell.
            return False, None
        leaves = leaves_of(trial)
        known = {twin.untyped_storage()._cdata for twin in twins.values()}
        aliases = [_is_one_of(leaf, known) for leaf in leaves]
        if not traits.writes and any(aliases):
            return True, func(*args, **kwargs)
        pairs = zip(traits.returns, leaves, strict=False)
        if any(name is not None and leaf.shape != bound[name].shape for name, leaf in pairs):
            return False, None
        made = [
            None if alias or not isinstance(leaf, torch.Tensor) else self._blank(leaf)
            for leaf, alias in zip(leaves, aliases, strict=True)
        ]
        writes = self._written(traits, bound)
        reads: set[int] = set()
        described, named = map_leaves(lambda x: self._described(x, reads), (args, kwargs))
        if traits.form_only:
            described, reads = _formed(described), set()
        named.update(_explicit(traits, leaves))
        makes = tuple(
            None if tensor is None else self.place(tensor, self._wait(tensor.untyped_storage()))
            for tensor in made
        )
        self._record(func, described, named, reads, writes, makes, draws=traits.draws)
        return True, _answer(trial, traits, bound, made)

    def _written(self, traits: Traits, bound: dict[str, Any]) -> frozenset[int]:
        found = set()
        for name in traits.written(bound):
            for tensor in tensors_in(bound.get(name)):
                number = self.number(tensor)
                found.add(self.adopt(tensor) if number is None else number)
        return frozenset(found)

    def _described(self, value: Any, reads: set[int]) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        number = self.number(value)
        if number is None:
            # A constant, which the constructor may overwrite later.
            return value.detach().clone()
        reads.add(number)
        return self.place(value, number)

    def _blank(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")

    def _wait(self, storage: torch.UntypedStorage) -> int:
        number = self.log.storage(storage.nbytes())
        # Held, so that its identity stays its own.
        self.waiting[storage._cdata] = (number, storage)
        return number

    def place(self, tensor: torch.Tensor, number: int) -> Place:
        """A tensor as the log knows it."""
        return Place(
            number,
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            tensor.dtype,
        )

    def _record(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reads: Iterable[int],
        writes: Iterable[int],
        makes: tuple[Place | None, ...],
        *,
        draws: bool = False,
    ) -> None:
        dtype = torch.get_default_dtype()
        written = frozenset(writes)
        call = Call(function, args, kwargs, frozenset(reads), written, makes, draws, dtype)
        self.log.append(call)


class Reads(TorchFunctionMode):
    """Settles tensors whose memory is read past the dispatcher.

    Args:
        recorder: what they wait in.
    """

    # What copies or hands out the memory itself.
    FUNCTIONS = frozenset(
        getattr(torch.Tensor, name)
        for name in (
            *("numpy", "tolist", "__array__", "__dlpack__", "__reduce_ex__", "storage"),
            *("apply_", "map_", "map2_", "share_memory_"),
        )
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        copies = func is torch.Tensor.__deepcopy__ and not isinstance(
            args[0], torch.nn.Parameter
        )  # a Parameter clones itself, which is recorded
        if copies or func in self.FUNCTIONS:
            self._recorder.settle(tensors_in(args), f"Tensor.{func.__name__} reads them")
        return func(*args, **(kwargs or {}))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is an ordinary dense tensor on the CPU."""
    return (
        type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _twin(value: Any, twins: dict[int, torch.Tensor]) -> Any:
    """A stand-in on meta, one for each tensor."""
    if not isinstance(value, torch.Tensor):
        return torch.device("meta") if isinstance(value, torch.device) else value
    if id(value) not in twins:
        twins[id(value)] = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device="meta"
        )
    return twins[id(value)]


def _stays(tensor: torch.Tensor, size: Any) -> bool:
    """Whether a tensor has the size already that it is to be given, as ``out=`` mostly has."""
    wanted = size.shape if isinstance(size, torch.Tensor) else size
    return tuple(tensor.shape) == tuple(wanted)


def _only_fills(traits: Traits, bound: dict[str, Any]) -> bool:
    """Whether this is one of the commonest calls, and no shape or argument of it can be wrong."""
    tensor = bound.get("self")
    if tensor is None or not tensor.dtype.is_floating_point:
        return False
    if traits.name == "aten::uniform_":
        return bool(0 <= bound.get("to", 1) - bound.get("from", 0) < _LARGE)
    if traits.name == "aten::normal_":
        return bool(bound.get("std", 1) >= 0)
    return traits.name == "aten::fill_" and not isinstance(bound["value"], torch.Tensor)


def _is_one_of(leaf: Any, storages: set[int]) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata in storages


def _formed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with a form for the first."""
    first = args[0]
    stride = first.stride if isinstance(first, Place) else tuple(first.stride())
    size = first.size if isinstance(first, Place) else tuple(first.shape)
    return Form(size, stride, first.dtype), *args[1:]


def _explicit(traits: Traits, leaves: list[Any]) -> dict[str, Any]:
    """What a factory left to the defaults of the moment, or of another tensor."""
    if not (traits.factory or traits.draws) or "dtype" not in traits.arguments:
        return {}
    return {"dtype": leaves[0].dtype, "device": torch.device("cpu")}


def _answer(trial: Any, traits: Traits, bound: dict[str, Any], made: list[Any]) -> Any:
    """What the call returns: its own arguments where it wrote them, else the new tensors."""
    if traits.writes:
        pairs = zip(traits.returns, made, strict=False)
        returned = tuple(bound[name] if name is not None else tensor for name, tensor in pairs)
        return returned[0] if len(returned) == 1 else returned or None
    values = iter(made)
    return map_leaves(lambda leaf: next(values), trial)
