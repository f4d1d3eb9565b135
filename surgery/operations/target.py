"""What is to be built: a catalog name, an import path or a callable."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType
from typing import Any

from torch import nn

from surgery.errors import ArgumentError, PlanError
from surgery.families.catalog import Catalog
from surgery.families.family import Family
from surgery.families.registry import Registry
from surgery.wrappers import class_name

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class Target:
    """A callable that builds, and what people call it.

    Attributes:
        title: the catalog name, import path or name of the callable.
        factory: what is called.
    """

    title: str
    factory: Factory


def resolve_target(target: object, registry: Registry) -> Target:
    """Find what builds a model.

    Args:
        target: a name of a catalog (``"package:name"``, ``"family:name"``, or the name alone where
            one catalog has it, and not one that is listed only when asked),
            ``"package.module:callable"``, or a callable. A catalog comes
            before a module of the same name.
        registry: the plugins whose catalogs are asked.

    Raises:
        ArgumentError: no such name, or several; the closest are listed.
        PlanError: it is known where it is, and that cannot be imported.

    Example:
        >>> from surgery.families.registry import Registry
        >>> resolve_target("torch.nn:Linear", Registry.of()).factory(3, 2)
        Linear(in_features=3, out_features=2, bias=True)
    """
    if isinstance(target, str):
        return _named(target, registry)
    if not callable(target) or isinstance(target, nn.Module):
        module = isinstance(target, nn.Module)
        raise ArgumentError(
            "this is a model already" if module else "this builds nothing",
            where="target",
            expected="a catalog name, 'package.module:callable', or a callable",
            found=class_name(type(target)),
            fix="surgery.build(type(model))" if module else "surgery.build(MyModel)",
        )
    return Target(getattr(target, "__qualname__", None) or repr(target), target)


def _named(target: str, registry: Registry) -> Target:
    prefix, _, name = target.rpartition(":")
    found = [
        family
        for family in registry.families
        if prefix in _prefixes(family) and name in family.catalog
    ]
    if len(found) > 1:
        raise ArgumentError(
            f"{len(found)} catalogs have this name",
            where="target",
            expected="the name of a family before it",
            found=target,
            fix=" or ".join(f"surgery.build('{family.name}:{name}')" for family in found),
        )
    if found:
        return Target(target, _catalogued(found[0], name))
    if not prefix or not all(
        part.isidentifier() for part in (*prefix.split("."), *name.split("."))
    ):
        raise _unknown(target, registry)
    return Target(target, _imported(target, registry))


def _prefixes(family: Family) -> tuple[str, ...]:
    """What may stand before a family's names; nothing, where the family lists them itself."""
    bare = () if isinstance(family.catalog, Catalog) else ("",)
    return (*bare, family.name, *family.packages)


def _catalogued(family: Family, name: str) -> Factory:
    target = family.catalog[name]
    try:
        factory: Factory = target if callable(target) else pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        packages = " ".join(package.replace("_", "-") for package in family.packages)
        raise PlanError(
            f"family {family.name!r} builds {name!r} with what cannot be imported",
            where=str(target),
            expected=", ".join(family.packages) or "a callable",
            found=str(error),
            fix=f"pip install {packages}",
        ) from error
    return factory


def _imported(target: str, registry: Registry) -> Factory:
    try:
        found: Any = pkgutil.resolve_name(target)
    except (Exception, SystemExit) as error:  # a module's top level can raise anything
        if _is_missing(target, error):
            raise _unknown(target, registry, str(error)) from error
        raise PlanError(
            "the module raised when it was imported",
            where=target,
            expected="a module that can be imported",
            found=f"{type(error).__name__}: {error}",
            fix=f"python -c 'import {target.partition(':')[0]}'",
        ) from error
    if not callable(found) or isinstance(found, nn.Module):
        raise ArgumentError(
            "what stands at this path builds nothing",
            where=target,
            expected="a callable that returns a model",
            found=class_name(type(found)),
            fix="surgery.build('package.module:callable')",
        )
    factory: Factory = found
    return factory


def _is_missing(target: str, error: BaseException) -> bool:
    """Whether there is no such module or name, which is another thing than a broken one."""
    if isinstance(error, ModuleNotFoundError):
        return f"{target.partition(':')[0]}.".startswith(f"{error.name}.")
    return (
        isinstance(error, AttributeError)
        and error.__traceback__ is not None
        and (_innermost(error.__traceback__) == pkgutil.__name__)
    )


def _innermost(traceback: TracebackType) -> str:
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__"))


def _unknown(target: str, registry: Registry, why: str = "") -> ArgumentError:
    names = registry.catalog_names
    # Of two catalogs with one name, the last one counts: that which answers to it alone.
    ordered = sorted(registry.families, key=lambda family: "" in _prefixes(family))
    bare = {name: full for family in ordered for name, full in family.listed.items()}
    close = [bare[name] for name in get_close_matches(target.rpartition(":")[2], bare, n=3)]
    if ":" in target:
        close = [*get_close_matches(target, names, n=3), *close]
    close = list(dict.fromkeys(close))[:3]
    return ArgumentError(
        "no catalog has this name, and nothing can be imported under it",
        where="target",
        expected=" or ".join(close) if close else f"one of {len(names)} names, or an import path",
        found=f"{target!r} ({why})" if why else repr(target),
        fix=f"surgery.build({close[0]!r})" if close else "surgery.build('package.module:callable')",
    )
