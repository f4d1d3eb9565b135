"""Addresses: where every module, parameter and buffer of a model lives.

An address is the dotted path that ``named_modules`` and ``state_dict`` use, except that it
passes straight through wrappers: ``fc.weight`` and not ``_orig_mod.fc.weight``. A shared module
or tensor has one address for each way that leads to it; this file is the only one that knows
them all, and every other asks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from surgery.errors import AddressError, UnsupportedModelError, WrappedModelError

TensorKind: TypeAlias = Literal["parameter", "buffer", "attribute"]


@dataclass(frozen=True)
class Wrapper:
    """A module that only carries another: where it keeps it, and whether changes inside hold."""

    attribute: str
    changeable: bool


# By qualified class name, so that nothing is imported to recognise one.
WRAPPERS: Mapping[str, Wrapper] = {
    "torch._dynamo.eval_frame.OptimizedModule": Wrapper("_orig_mod", changeable=True),
    "torch.nn.parallel.data_parallel.DataParallel": Wrapper("module", changeable=False),
    "torch.nn.parallel.distributed.DistributedDataParallel": Wrapper("module", changeable=False),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": Wrapper(
        "_fsdp_wrapped_module", changeable=False
    ),
}
# Mixed into a model's own class by ``fully_shard``: there is nothing to unwrap.
SHARDED = "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule"


def class_name(cls: type) -> str:
    """The qualified name of a class, ``package.module.Class``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def wrapper_of(module: nn.Module) -> Wrapper | None:
    """How this module wraps another, or None if it is a model of its own."""
    for cls in type(module).__mro__:
        wrapper = WRAPPERS.get(class_name(cls))
        if wrapper is not None:
            return wrapper
    return None


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside any number of wrappers (``torch.compile``, DataParallel, DDP, FSDP)."""
    while (wrapper := wrapper_of(module)) is not None:
        module = module._modules[wrapper.attribute]  # type: ignore[assignment]
    return module


def join(address: str, name: str) -> str:
    """The address of ``name`` inside the module at ``address`` (``""`` is the root)."""
    return f"{address}.{name}" if address else name


def split(address: str) -> tuple[str, str]:
    """The owner's address and the last name: ``"a.b.c"`` becomes ``("a.b", "c")``."""
    owner, _, name = address.rpartition(".")
    return owner, name


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with every one of its addresses, parents first, wrappers passed through.

    A shared module comes once for each address; a module that contains itself is entered once.
    """
    yield from _walk("", unwrap(model), ())


def _walk(
    address: str, module: nn.Module, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    yield address, module
    above = (*above, module)
    for name, child in module._modules.items():
        if child is not None:
            inner = unwrap(child)
            if not any(inner is parent for parent in above):
                yield from _walk(join(address, name), inner, above)


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor of a model, what it is, and every address that leads to it."""

    tensor: torch.Tensor
    kind: TensorKind
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        """The first address, in the order of ``named_parameters``."""
        return self.addresses[0]


@dataclass(frozen=True, eq=False)
class Index:
    """Every module and tensor of a model by identity, in the order of the walk.

    ``tensors`` holds parameters and buffers, and plain tensors hung on a module as attributes.
    """

    root: nn.Module
    modules: Mapping[int, tuple[nn.Module, tuple[str, ...]]]
    tensors: Mapping[int, Entry]

    def addresses(self, target: nn.Module | torch.Tensor) -> tuple[str, ...]:
        """Every address of a module or tensor; empty where the model does not hold it."""
        if isinstance(target, torch.Tensor):
            entry = self.tensors.get(id(target))
            return entry.addresses if entry else ()
        found = self.modules.get(id(unwrap(target)))
        return found[1] if found else ()

    def of_kind(self, *kinds: TensorKind) -> Iterator[Entry]:
        """The tensors of these kinds, each once."""
        return (entry for entry in self.tensors.values() if entry.kind in kinds)


def index(model: nn.Module) -> Index:
    """Find every module and tensor of a model, with every address of each.

    Args:
        model: any module, wrapped or not.

    Returns:
        The index. Shared modules and tied tensors appear once, with all their addresses.

    Example:
        >>> import torch
        >>> from surgery import tree
        >>> tied = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        >>> tied["b"].weight = tied["a"].weight
        >>> tree.index(tied).addresses(tied["a"].weight)
        ('a.weight', 'b.weight')
    """
    modules: dict[int, tuple[nn.Module, list[str]]] = {}
    tensors: dict[int, tuple[torch.Tensor, TensorKind, list[str]]] = {}

    def note(tensor: torch.Tensor, kind: TensorKind, address: str) -> None:
        tensors.setdefault(id(tensor), (tensor, kind, []))[2].append(address)

    plain: list[tuple[torch.Tensor, str]] = []
    for address, module in walk(model):
        modules.setdefault(id(module), (module, []))[1].append(address)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                note(parameter, "parameter", join(address, name))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                note(buffer, "buffer", join(address, name))
        for name, value in module.__dict__.items():
            if isinstance(value, torch.Tensor):
                plain.append((value, join(address, name)))
    for tensor, address in plain:
        note(tensor, "attribute", address)
    return Index(
        unwrap(model),
        {key: (module, tuple(found)) for key, (module, found) in modules.items()},
        {key: Entry(tensor, kind, tuple(found)) for key, (tensor, kind, found) in tensors.items()},
    )


def get(model: nn.Module, address: str) -> nn.Module | torch.Tensor:
    """The module, parameter, buffer or plain tensor at an address.

    Wrapper names in the address (``_orig_mod``, ``module``) are understood and not needed.

    Raises:
        AddressError: nothing lives there; the error lists what does.
    """
    here: nn.Module = unwrap(model)
    if not address:
        return here
    passed: list[str] = []
    names = address.split(".")
    for position, name in enumerate(names):
        found = _member(here, name)
        if found is None:
            wrapped = name in {wrapper.attribute for wrapper in WRAPPERS.values()}
            if wrapped and position < len(names) - 1:
                continue
            raise _no_such(here, ".".join(passed), name, address)
        passed.append(name)
        if isinstance(found, torch.Tensor):
            if position < len(names) - 1:
                raise AddressError(
                    f"{'.'.join(passed)!r} is a tensor and has nothing inside it",
                    where=address,
                    fix=f"surgery.tree.get(model, {'.'.join(passed)!r})",
                )
            return found
        here = unwrap(found)
    return here


def get_module(model: nn.Module, address: str) -> nn.Module:
    """The module at an address; an AddressError where there is a tensor or nothing."""
    found = get(model, address)
    if not isinstance(found, nn.Module):
        raise AddressError(
            "a module is needed here and this is a tensor",
            where=address,
            expected="the address of a module",
            found=f"a tensor of shape {tuple(found.shape)}",
            fix=f"use {split(address)[0]!r}, the module that owns it",
        )
    return found


def _member(module: nn.Module, name: str) -> nn.Module | torch.Tensor | None:
    for members in (module._modules, module._parameters, module._buffers):
        value = members.get(name)
        if value is not None:
            return value
    value = module.__dict__.get(name)
    return value if isinstance(value, torch.Tensor) else None


def _no_such(module: nn.Module, passed: str, name: str, address: str) -> AddressError:
    import difflib

    members = [
        *module._modules,
        *(key for key, value in module._parameters.items() if value is not None),
        *(key for key, value in module._buffers.items() if value is not None),
    ]
    close = difflib.get_close_matches(name, members, n=3)
    inside = f"{passed!r} ({type(module).__name__})" if passed else f"the {type(module).__name__}"
    shown = ", ".join(members[:12]) + (", ..." if len(members) > 12 else "")
    return AddressError(
        f"nothing is called {name!r} in {inside}",
        where=address,
        expected=f"one of: {shown}" if members else "nothing: it is empty",
        fix=f"did you mean {join(passed, close[0])!r}?" if close else "for name, _ in "
        "model.named_modules(): print(name)",
    )


def put(
    model: nn.Module, address: str, value: nn.Module | torch.Tensor
) -> nn.Module | torch.Tensor:
    """Set one address to another module or tensor of the same sort, and return what was there.

    Other addresses of a shared thing are not followed: ask ``index`` for them. The order of the
    members stays. It goes through ``setattr``, as a user's own assignment would, so that layers
    which keep lists of their weights (``nn.LSTM``) stay consistent.

    Raises:
        AddressError: nothing lives there, it is the root, or it is of another sort.
    """
    if not address:
        raise AddressError(
            "the root cannot be set inside itself", where="''", fix="use the new model directly"
        )
    old = get(model, address)
    owner_address, name = split(address)
    owner = get_module(model, owner_address)
    if isinstance(old, nn.Module) is not isinstance(value, nn.Module):
        raise AddressError(
            "a module can only be replaced by a module, and a tensor by a tensor",
            where=address,
            expected=type(old).__name__,
            found=type(value).__name__,
        )
    if isinstance(old, nn.Parameter) is not isinstance(value, nn.Parameter):
        raise AddressError(
            "a parameter can only be replaced by a parameter, and a buffer by a tensor",
            where=address,
            expected=type(old).__name__,
            found=type(value).__name__,
            fix="wrap the tensor: torch.nn.Parameter(tensor)",
        )
    setattr(owner, name, value)
    return old


def check_model(model: object) -> nn.Module:
    """Refuse what cannot be walked at all: no module, lazy, scripted or exported.

    Raises:
        UnsupportedModelError: with what to pass instead.
    """
    if not isinstance(model, nn.Module):
        exported = class_name(type(model)).startswith("torch.export.")
        raise UnsupportedModelError(
            "this is no model",
            expected="a torch.nn.Module",
            found=class_name(type(model)),
            fix="pass the module it was exported from"
            if exported
            else "pass the module itself, for instance model = Net(); surgery.audit(model)",
        )
    for address, module in walk(model):
        name = class_name(type(module))
        where = address or "(the model itself)"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                "a scripted or traced module has no Python forward to record or change",
                where=where,
                expected="the eager nn.Module",
                found=name,
                fix="operate on the module it was made from, then call torch.jit.script again",
            )
        if name.startswith("torch.export."):
            raise UnsupportedModelError(
                "an exported program has its shapes written into its code",
                where=where,
                expected="the eager nn.Module",
                found=name,
                fix="operate on the module it was exported from, then export again",
            )
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                raise UnsupportedModelError(
                    f"{type(module).__name__} has not seen an input yet, so its sizes are unknown",
                    where=join(address, key),
                    expected="an initialised parameter",
                    found=type(tensor).__name__,
                    fix="run one batch first: model(example)",
                )
    return model


def check_changeable(model: nn.Module, address: str = "") -> None:
    """Refuse to change what lies inside DataParallel, DistributedDataParallel or FSDP.

    A layer replaced there fails at the second backward, because the wrapper holds the old one.

    Raises:
        WrappedModelError: with the remedy.
    """
    here = model
    for passed in _prefixes(address):
        here = _one(here, passed)
        module: nn.Module = here
        while True:
            wrapper = wrapper_of(module)
            names = {class_name(cls) for cls in type(module).__mro__}
            if SHARDED in names or (wrapper is not None and not wrapper.changeable):
                kind = "FSDP" if SHARDED in names else type(module).__name__
                attribute = f".{wrapper.attribute}" if wrapper else ""
                raise WrappedModelError(
                    f"the model is inside {kind}, which holds on to the parameters it was given: "
                    "a replaced layer would fail at the second backward",
                    where=address or "(the model itself)",
                    expected="the bare model",
                    found=class_name(type(module)),
                    fix=f"operate on model{attribute}, then wrap it again"
                    if attribute
                    else "operate before fully_shard(model), then shard",
                )
            if wrapper is None:
                break
            module = module._modules[wrapper.attribute]  # type: ignore[assignment]


def _prefixes(address: str) -> list[str | None]:
    return [None, *address.split(".")] if address else [None]


def _one(module: nn.Module, name: str | None) -> nn.Module:
    if name is None:
        return module
    child = unwrap(module)._modules.get(name)
    return child if child is not None else unwrap(module)
