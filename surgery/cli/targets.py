"""TARGET: a catalog name, ``package.module:callable``, or the path of a checkpoint."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.cli import plugged
from surgery.errors import ArgumentError, PlanError, SurgeryError
from surgery.weights.paths import is_spelt_as_path, path_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from surgery.weights.value import Weights


def is_path(target: str) -> bool:
    """Whether a TARGET is a file or a directory, or is spelt like one.

    Args:
        target: what was given.

    Raises:
        ArgumentError: there is a directory and a model in a catalog of this very name.

    Example:
        >>> is_path("torch.nn:Linear"), is_path("model.safetensors"), is_path("./model")
        (False, True, True)
    """
    if is_spelt_as_path(target):
        return True
    if not os.path.lexists(target):
        return False
    names = plugged.registry().catalog_names
    meant = [name for name in names if target in (name, name.partition(":")[2])]
    if meant:
        raise ArgumentError(
            "this is a file or directory here, and a model in a catalog",
            where="TARGET",
            expected="a name that is one of them",
            found=target,
            fix=f"./{target} or {meant[0]}",
        )
    return True


def weights_of(target: str) -> Weights:
    """The tensors of a TARGET that is a checkpoint, with none of them read.

    Args:
        target: what was given.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
        ArgumentError: it is the name of a model.
    """
    if not is_path(target):
        raise ArgumentError(
            "this is no checkpoint",
            where="TARGET",
            expected="a file of torch.save or safetensors, an *.index.json, or a directory",
            found=target,
            fix=f"./{target}, if a file is meant",
        )
    from surgery.weights import read

    return read(target, registry=plugged.registry())


def model_of(
    target: str,
    *,
    built_by: str | None = None,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    values: bool = False,
) -> nn.Module:
    """The model of a TARGET.

    Args:
        target: what was given: a name, or a checkpoint.
        built_by: for a file, the name of what builds the model; what the file says, if left out
            and it says a name in a catalog. Any checkpoint is loaded into it then.
        num_classes: handed to what builds the model; for a checkpoint that does not say it, the
            number that it fits, if left out.
        options: further arguments for what builds the model.
        values: whether the parameters of a model that is built need values; on ``meta``, if not.

    Raises:
        SurgeryError: no such name or file, it cannot be built, or the file alone makes no model.
    """
    find_modules_here()
    plugins = plugged.registry()
    options = options or {}
    check_given(options)
    if is_path(target):
        return _restored(target, built_by, num_classes, options)
    refuse(target, "a name", "a saved file", {"--target": built_by})
    from surgery.operations.build import build, constructed
    from surgery.operations.target import resolve_target

    try:
        if values:
            return build(target, num_classes=num_classes, registry=plugins, **options).model
        deferred, _ = constructed(resolve_target(target, plugins), num_classes, options)
    except PlanError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        missing = re.search(r"missing .* arguments?: (.*)", str(error.found))
        names = re.findall(r"'(\w+)'", missing[1]) if missing is not None else []
        more = " ".join(f"--option {name}=..." for name in names)
        make = "def make(): return ... in a file models.py here, and models:make as TARGET"
        raise PlanError(
            "this could not be built",
            where=target,
            expected="a callable, and the arguments that it needs",
            found=error.found,
            fix=f"{more}, or {make}" if more else make,
        ) from error
    return deferred.model


def check_given(options: Mapping[str, Any]) -> None:
    """Refuse arguments that are no business of what builds TARGET.

    Args:
        options: what was given as ``--option``.

    Raises:
        RecipeError: one of them is an argument of ``surgery.build`` itself.
    """
    if options:
        from surgery.recipes.sources import check_options

        check_options(options, "--option")


def _restored(
    path: str, built_by: str | None, num_classes: int | None, options: Mapping[str, Any]
) -> nn.Module:
    from surgery.operations.build import build
    from surgery.operations.recorded import read_recorded
    from surgery.operations.restore import restore
    from surgery.recipes.fitting import fitting_classes
    from surgery.recipes.sources import remembered
    from surgery.weights.contents import contents

    plugins = plugged.registry()
    path_of(path)
    plain = read_recorded(contents(path, registry=plugins).metadata) is None
    if built_by is None or not plain:
        instead = "the name of a model, or a plain checkpoint and --target"
        refuse(path, "a saved file", instead, {"--num-classes": num_classes})
    if built_by is None:
        try:
            built_by, options = remembered(path, plugins, options)
        except PlanError as error:
            if error.found is not None and "--option" in str(error.fix):
                raise
            raise PlanError(
                "a checkpoint holds tensors, and this needs the model they belong to",
                where=path,
                expected="a file of surgery.save that says what it was built by, or --target",
                found=error.what,
                fix=f"add --target with a name; surgery inspect {path} shows what is in the file",
            ) from error
    try:
        if not plain:
            return restore(built_by, path, mmap=True, registry=plugins, **options).model
        number = num_classes or fitting_classes(built_by, path, options, plugins)
        given = {"num_classes": number, "registry": plugins, **options}
        return build(built_by, weights=path, mmap=True, **given).model
    except SurgeryError as error:
        if error.where == "target":
            error.where = "--target"
        raise


def refuse(target: str, kind: str, instead: str, given: Mapping[str, object]) -> None:
    """Refuse options that say nothing about a TARGET of this kind.

    Args:
        target: what was given.
        kind: what that is.
        instead: what they are for.
        given: the values of the options by name; None for what was not given.

    Raises:
        ArgumentError: one of them was given.
    """
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(
                f"{name} says nothing about {kind}",
                where=name,
                expected=f"{name} with {instead}",
                found=f"{name} with {target}",
                fix=f"leave {name} out",
            )


def find_modules_here() -> None:
    """Let ``package.module`` be looked for where the command is called, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def tensor_of(shape: tuple[int, ...] | None) -> torch.Tensor | None:
    """An input of a shape, on meta; None where none was given."""
    import torch

    return None if shape is None else torch.empty(shape, device="meta")
