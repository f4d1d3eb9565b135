"""What a checkpoint's pickle says, without letting it do anything.

A pickle is a program that names functions and has them called. Here every name stands for
something inert: what torch needs to rebuild a tensor becomes a note of where that tensor lies,
``OrderedDict`` a dict, and any other name a placeholder that is reported and never imported. No
tensor is made and no code of the file's choosing runs, so the pickle alone gives names, shapes
and dtypes. The list of names that are understood is that of ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from surgery.errors import CorruptFileError, RefusedPickleError
from surgery.weights.sizes import is_count
from surgery.weights.verdicts import printable

_STORAGES = {
    f"{name}Storage": getattr(torch, dtype)
    for name, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexDouble": "complex128",
        "ComplexFloat": "complex64",
        "QUInt8": "quint8",
        "QInt8": "qint8",
        "QInt32": "qint32",
        "QUInt4x2": "quint4x2",
        "QUInt2x4": "quint2x4",
        # Counts bytes; the dtype comes with the tensor.
        "Untyped": "uint8",
    }.items()
    if hasattr(torch, dtype)
}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_SHOWN = 20


class Inert:
    """What the pickle made of something that is only named; it takes anything and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None:
        """Take an item of a list and forget it."""

    def extend(self, items: object) -> None:
        """Take items of a list and forget them."""


class StateDict(dict[object, object]):
    """What an ``OrderedDict`` becomes: a dict that refuses a second value for a name."""

    _metadata: object = None

    def __setitem__(self, key: object, value: object) -> None:
        if key in self:
            raise pickle.UnpicklingError(f"the name {key!r} stands twice")
        super().__setitem__(key, value)

    def __setstate__(self, state: object) -> None:
        # ``module.state_dict()`` hangs the versions of its modules on what it returns.
        if isinstance(state, dict):
            self._metadata = state.get("_metadata")


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes that the pickle speaks of.

    Attributes:
        key: their name in the file.
        dtype: of the elements that are counted.
        numel: how many elements the whole of it has.
        base: where this part begins, in elements (the legacy format has parts).
        part: how many elements this part has.
    """

    key: str
    dtype: torch.dtype
    numel: int
    base: int
    part: int

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a storage was given a state")


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that the pickle speaks of; nothing in it is checked yet.

    Attributes:
        storage: its bytes; None where it has none that could be read in place.
        dtype: of its elements.
        offset: of its first element in the storage, in elements of its dtype.
        shape: its sizes.
        stride: its strides, in elements.
        special: why only torch can rebuild it: ``sparse``, ``quantized`` and so on.
    """

    storage: Storage | None
    dtype: Any
    offset: Any
    shape: Any
    stride: Any
    special: str = ""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a tensor was given a state")


@dataclass(frozen=True)
class Said:
    """What a pickle says.

    Attributes:
        content: plain Python values, ``StateDict``, ``Stored`` and ``Inert``.
        storages: every storage it speaks of, in that order; one may come several times.
    """

    content: Any
    storages: tuple[Storage, ...]


def load(data: bytes | BinaryIO, where: str) -> Said:
    """Read one pickle, and run nothing.

    Args:
        data: the pickle, or a file that stands where it begins and is left where it ends.
        where: the file, for errors.

    Returns:
        What it says, its tensors as ``Stored``.

    Raises:
        RefusedPickleError: it names globals that torch would not load either; all are listed.
        CorruptFileError: it is no valid pickle.

    Example:
        >>> import pickle
        >>> load(pickle.dumps({"epoch": 3}, 2), "x.pth").content
        {'epoch': 3}
    """
    reader = _Reader(io.BytesIO(data) if isinstance(data, bytes) else data)
    try:
        content = reader.load()
    except Exception as error:  # a broken pickle can raise anything at all
        if not reader.refused:
            raise CorruptFileError(
                "the pickle in this file is broken",
                where=where,
                expected="what torch.save writes",
                found=f"{type(error).__name__}: {error}"[:200],
                fix="copy or download the file again",
            ) from error
    if reader.refused:
        raise _refusal(reader.refused, where)
    return Said(content, tuple(reader.storages))


def _refusal(names: dict[str, None], where: str) -> RefusedPickleError:
    wanted = [*names][:_SHOWN]
    more = len(names) - len(wanted)
    shown = ", ".join(map(printable, wanted))
    return RefusedPickleError(
        "the file asks for code that is not needed to hold weights; none of it was run",
        where=where,
        expected="tensors, numbers, text and containers of these",
        found=f"{shown} and {more:,} more" if more > 0 else shown,
        fix="torch.save(model.state_dict(), 'weights.pth') where it was made; or, where you trust "
        "these names, torch.serialization.add_safe_globals([...]) and read it again",
    )


class _Call:
    """A function that a pickle may call, and may do nothing else with."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function was given a state")


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a type was given a state")


# Python's own Unpickler and not the faster one in C: a memo index of four billion costs that one
# its memory, and this one nothing.
class _Reader(pickle._Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.refused: dict[str, None] = {}
        self.storages: list[Storage] = []
        self._trusted = _trusted()

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        full = f"{module}.{name}"
        if full in _CALLS:
            return _Call(_CALLS[full])
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if full not in self._trusted:
            self.refused[full] = None
        # A class of its own, since a pickle can set attributes of what it is handed.
        return type("Inert", (Inert,), {})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code} of the copyreg module")

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if _text(kind) == "module":
            return rest[0]
        if _text(kind) != "storage":
            raise pickle.UnpicklingError(f"a reference to a {kind!r}")
        of, key, _location, numel, *view = rest
        if not isinstance(of, _StorageType) or not is_count(numel):
            raise pickle.UnpicklingError(f"a malformed storage {key!r}")
        base, part = 0, numel
        if view and view[0] is not None:
            _key, base, part = view[0]
            if not is_count(base) or not is_count(part) or base + part > numel:
                raise pickle.UnpicklingError(f"storage {key!r} has a part beyond its end")
        storage = Storage(_text(key), of.dtype, numel, base, part)
        self.storages.append(storage)
        return storage


def _text(value: object) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _trusted() -> set[str]:
    """What the user has called safe; it stays inert here all the same."""
    listed: list[Any] = torch.serialization.get_safe_globals()
    return {
        each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}"
        for each in listed
    }


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored | Inert:
    if not isinstance(storage, Storage):
        return Inert()
    # The last of six is a dict of bits (a conjugate view) that change what the bytes mean.
    special = "conjugate" if len(rest) > 2 and rest[2] else ""
    return Stored(storage, storage.dtype, offset, size, stride, special)


def _typed(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *bits: Any,
) -> Stored:
    return Stored(storage, dtype, offset, size, stride, "conjugate" if bits and bits[0] else "")


def _sparse(layout: Any, data: Any) -> Stored | Inert:
    # Two tensors of indices come first, but for the layout of coordinates, which has one.
    values, size = data[1:3] if layout == "torch.sparse_coo" else data[2:4]
    if not isinstance(values, Stored):
        return Inert()
    return Stored(None, values.dtype, 0, size, (), "sparse")


def _quantized(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Stored | Inert:
    if not isinstance(storage, Storage):
        return Inert()
    return Stored(None, storage.dtype, 0, size, (), "quantized")


def _without_bytes(dtype: Any, size: Any, _stride: Any, *_rest: Any) -> Stored:
    return Stored(None, dtype, 0, size, (), "meta")


def _parameter(data: Any = None, *_rest: Any) -> Any:
    return data


def _with_attributes(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    return function(*args)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Any other codec is code by name.
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"the codec {encoding!r}")
    return text.encode(encoding)


def _bytes(value: bytes | list[int] = b"", *_encoding: object) -> bytes:
    # A number here would ask for that much memory.
    if not isinstance(value, (bytes, list, str)):
        raise pickle.UnpicklingError("a bytearray of a number")
    return value.encode("latin1") if isinstance(value, str) else bytes(value)


def _dict(items: Any = ()) -> StateDict:
    made = StateDict()
    for key, value in items.items() if isinstance(items, dict) else items:
        made[key] = value
    return made


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "builtins.set": lambda items=(): set(items),
    "builtins.complex": lambda real, imaginary=0.0: complex(real, imaginary),
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *args: ":".join(str(arg) for arg in args),
    "torch.Tensor": lambda *args: Inert(),
    "torch.nn.parameter.Parameter": _parameter,
    "torch.serialization._get_layout": lambda name: name,
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_bytes,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
}
