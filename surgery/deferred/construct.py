"""Construct a model whose parameters cost nothing, and fill those that no file fills."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from surgery import tree
from surgery.deferred.initialisers import recorded_by
from surgery.deferred.log import Log, Place
from surgery.deferred.recorder import Reads, Recorder, is_plain
from surgery.errors import AddressError, ArgumentError


class Deferred:
    """A model some of whose tensors are on ``meta`` and wait for their values.

    Attributes:
        model: the model.
        notes: what could not wait, and why.

    Example:
        >>> import torch
        >>> from surgery.deferred import construct
        >>> deferred = construct(torch.nn.Linear, 3, 2)
        >>> deferred.pending
        ('weight', 'bias')
        >>> deferred.put("weight", torch.ones(2, 3))
        >>> deferred.fill()
        >>> deferred.model.weight.sum(), deferred.pending
        (tensor(6., grad_fn=<SumBackward0>), ())
    """

    def __init__(
        self,
        model: nn.Module,
        notes: Iterable[str],
        log: Log,
        places: dict[str, tuple[torch.Tensor, Place]],
        origin: torch.Tensor | None = None,
    ) -> None:
        self.model = model
        self.notes = tuple(notes)
        self._log = log
        self._places = places
        self._untouched = True
        # The constructor has seeded the generator: what came before did not come from that seed.
        self._origin = torch.Generator().set_state(origin) if origin is not None else None

    @property
    def pending(self) -> tuple[str, ...]:
        """First addresses of what is on ``meta`` still: parameters, then random buffers."""
        seen: dict[int, str] = {}
        for name, (tensor, _) in self._places.items():
            if tensor.is_meta:
                seen.setdefault(id(tensor), name)
        return tuple(seen.values())

    def fill(
        self, names: Iterable[str] | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Initialise tensors as the constructor would have; draw random numbers for them only.

        All of them at once, nothing else drawn in between, the model equals bit for bit the one
        that the constructor would have made from the same state of the generator, unless
        ``notes`` says that it drew something already.

        Args:
            names: addresses; those that wait for nothing are left as they are. All, if left out.
            generator: a source of random numbers on the CPU; torch's default one, if left out.

        Raises:
            AddressError: no parameter or buffer of the constructed model had this name.
            ArgumentError: the generator is of another device.
        """
        chosen = self.pending if names is None else tuple(map(self._known, names))
        waiting = {
            id(tensor): (tensor, place)
            for tensor, place in (self._places[name] for name in chosen if name in self._places)
            if tensor.is_meta
        }
        wanted = {place.storage for _, place in waiting.values()}
        complete = self._untouched and len(waiting) == len(self.pending)
        with _drawn_from(generator or self._origin):
            values = self._log.replay(wanted, all_draws=complete)
        for tensor, place in waiting.values():
            _swap(tensor, place.on(values[place.storage]))
        self._settle()

    def put(self, name: str, value: torch.Tensor) -> None:
        """Let a waiting tensor have these values, without copying them.

        Args:
            name: an address.
            value: of the same shape; other dtypes and strides are converted, which copies.

        Raises:
            AddressError: nothing waits there.
            ArgumentError: the shapes differ.
        """
        place = self._places.get(self._known(name))
        # What the constructor itself puts on meta is in no list: nothing can fill it but a value.
        tensor: Any = tree.get(self.model, name) if place is None else place[0]
        if not tensor.is_meta:
            raise AddressError(
                "this has its values already",
                where=name,
                expected="a tensor on meta",
                found="one that has values",
                fix="deferred.pending lists what waits",
            )
        if tensor.shape != value.shape:
            raise ArgumentError(
                "these values have another shape",
                where=name,
                expected=tuple(tensor.shape),
                found=tuple(value.shape),
                fix=f"deferred.fill([{name!r}])",
            )
        if (value.dtype, value.stride()) != (tensor.dtype, tensor.stride()):
            value = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=value.device
            ).copy_(value.detach())
        _swap(tensor, value)
        self._untouched = False
        self._settle()

    def _known(self, name: str) -> str:
        if name in self._places:
            return name
        try:
            found: object = tree.get(self.model, name)
        except AddressError:
            found = None
        if not isinstance(found, torch.Tensor):
            close = get_close_matches(name, self._places, n=3)
            raise AddressError(
                "no tensor of this name was constructed",
                where=name or "(the model itself)",
                expected=", ".join(close) or "an address of deferred.pending",
                found=name,
                fix="deferred.pending lists what waits",
            )
        return name

    def _settle(self) -> None:
        # From the end: tensors come in order, and one that still waits is found at once.
        if not any(tensor.is_meta for tensor, _ in reversed(self._places.values())):
            # What was recorded holds constants.
            self._log = Log()


def construct(factory: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Deferred:
    """Call a constructor so that its parameters take no memory and draw no random numbers.

    The constructor runs as ever: its tensors have device, dtype, type and identity. What would
    fill them is recorded, and done where a value is read, for buffers at the end, and for
    parameters by ``Deferred.fill``. Until then they are on ``meta``, and so are buffers of random
    numbers. Constructors that compute with values run; a parameter whose values they read, or
    that shares its memory with another tensor, has its values at once, and ``notes`` says so.

    torch's generators stay as they are, unless a random number is read or they are seeded
    inside. What is drawn from Python's or NumPy's generators, on another device or from a
    generator of the constructor's own is drawn at once.

    Args:
        factory: a class or function that returns a model.
        args: its arguments.
        kwargs: its keyword arguments.

    Returns:
        The model, and what is needed to fill it.

    Raises:
        UnsupportedModelError: it returned no model, or one that is lazy or scripted.

    Example:
        >>> import torch
        >>> from surgery.deferred import construct
        >>> model = construct(torch.nn.BatchNorm1d, 2).model
        >>> model.weight.device, model.running_var
        (device(type='meta'), tensor([1., 1.]))
    """
    state, recorder = torch.get_rng_state(), Recorder()
    with torch.inference_mode(False), recorded_by(recorder):
        try:
            with _untouched_memory(), recorder, Reads(recorder):
                model = factory(*args, **kwargs)
            tree.check_model(model)
        except BaseException:
            torch.set_rng_state(state)
            raise
        return _finished(model, recorder)


@contextlib.contextmanager
def _untouched_memory() -> Iterator[None]:
    """Keep torch, asked for deterministic algorithms, from filling new memory."""
    setting: Any = torch.utils.deterministic
    before = setting.fill_uninitialized_memory
    setting.fill_uninitialized_memory = False
    try:
        yield
    finally:
        setting.fill_uninitialized_memory = before


@contextlib.contextmanager
def _drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's default generator draw what this one would."""
    if generator is None:
        yield
        return
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise ArgumentError(
            "what is constructed is drawn on the CPU",
            where="generator",
            expected="a torch.Generator of the CPU",
            found=repr(generator),
            fix="torch.Generator().manual_seed(0)",
        )
    state = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
        generator.set_state(torch.get_rng_state())
    finally:
        torch.set_rng_state(state)


def _finished(model: nn.Module, recorder: Recorder) -> Deferred:
    """Give values to what has to have them, and put the rest on ``meta``."""
    entries = list(tree.index(model).of_kind("parameter", "buffer"))
    if any(_is_shared(entry, recorder) for entry in entries):
        # What the constructor left behind in cycles holds memory as well.
        gc.collect()
    chosen = [entry for entry in entries if _can_wait(entry, recorder)]
    numbers = {id(entry.tensor): _number(entry, recorder) for entry in chosen}
    staying = {entry.tensor.untyped_storage()._cdata for entry in chosen}
    living = {
        cdata
        for cdata, (_, storage) in recorder.waiting.items()
        if cdata not in staying and _holders(storage)
    }
    recorder.settle_storages(living, "buffers and attributes are made of them")
    places: dict[str, tuple[torch.Tensor, Place]] = {}
    for entry in chosen:
        place = recorder.place(entry.tensor, numbers[id(entry.tensor)])
        if _empty(entry.tensor):
            places.update(dict.fromkeys(entry.addresses, (entry.tensor, place)))
        else:
            recorder.settle([entry.tensor], f"{entry.address} is held elsewhere")
    kept = [
        _remark(entry)
        for entry in entries
        if entry.kind == "parameter" and entry.address not in places
    ]
    origin = recorder.origin()
    if origin is not None:
        recorder.notes["the constructor seeds torch's generator"] = None
    return Deferred(model, (*recorder.notes, *kept), recorder.log, places, origin)


def _can_wait(entry: tree.Entry, recorder: Recorder) -> bool:
    """Whether a tensor is alone on its storage, so that it can be put elsewhere."""
    tensor = entry.tensor
    if not is_plain(tensor) or not tensor.is_leaf or tensor._backward_hooks:
        return False
    number = recorder.number(tensor)
    if entry.kind == "buffer" and (number is None or not recorder.log.is_random(number)):
        return False
    return _holders(tensor.untyped_storage()) == 1


def _is_shared(entry: tree.Entry, recorder: Recorder) -> bool:
    waits = entry.kind == "parameter" and recorder.number(entry.tensor) is not None
    return waits and _holders(entry.tensor.untyped_storage()) > 1


def _remark(entry: tree.Entry) -> str:
    """Why a parameter does not wait."""
    tensor = entry.tensor
    if tensor.is_meta:
        return f"{entry.address} is on meta: its constructor put it there, and fills nothing"
    if tensor.device.type != "cpu":
        return f"{entry.address} has its values already: it was constructed on {tensor.device}"
    return f"{entry.address} has its values already: its memory is held elsewhere as well"


def _number(entry: tree.Entry, recorder: Recorder) -> int:
    number = recorder.number(entry.tensor)
    return recorder.adopt(entry.tensor, copy=False) if number is None else number


def _holders(storage: torch.UntypedStorage) -> int:
    """How many tensors have this storage: all references to it but this one."""
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


def _empty(tensor: torch.Tensor) -> bool:
    """Put a tensor on ``meta``, unless somebody else holds it."""
    size, stride = tensor.size(), tensor.stride()
    blank = torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")
    return _swap(tensor, blank)


def _swap(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Make a tensor object another tensor, whoever refers to it."""
    other = other.detach().requires_grad_(tensor.requires_grad)
    try:
        torch._C._swap_tensor_impl(tensor, other)
    except RuntimeError:
        return False
    return True
