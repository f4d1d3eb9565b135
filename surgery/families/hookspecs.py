"""The contract between surgery and its plugins: every hook, and when it is called.

A plugin is a module (or any object) named by an entry point of the group ``surgery``. It
implements any of these hooks as a function of the same name, marked with
``surgery.families.hookimpl``. It may leave arguments out, and must not add any. Names that start
with ``surgery_`` are reserved: a function with such a name that is no hook, or that lacks the
mark, is an error that names it.

Each plugin is called on its own. An exception in one is kept as a failure, is shown by
``Registry.explain``, and stops nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import argparse

    from surgery.families.family import Family
    from surgery.families.kinds import HeadKind, WeightReader

PROJECT = "surgery"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Commands(Protocol):
    """Where commands are added: what ``ArgumentParser.add_subparsers`` returns."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser:
        """Add a command and return the parser of its arguments."""


@hookspec
def surgery_families() -> Sequence[Family]:  # type: ignore[empty-body]
    """Register the architectures that this plugin knows.

    Called once for each registry, when it is loaded. It must not import the framework whose
    models it describes: they are recognised by the qualified names of their classes.

    Returns:
        A list or tuple of ``surgery.families.Family``.

    Example::

        @hookimpl
        def surgery_families():
            return [
                Family(
                    name="tinynet",
                    classes=("tinynet.TinyNet",),
                    example=(2, 3, 32, 32),
                    heads=(HeadClaim("classifier"),),
                )
            ]
    """


@hookspec
def surgery_head_kinds() -> Sequence[HeadKind]:  # type: ignore[empty-body]
    """Register how to rebuild head layers that are no plain linear layer or convolution.

    Called once for each registry, when it is loaded. The kind's ``rebuild(layer, num_classes)``
    is called later, when a head of that class gets another number of classes.

    Returns:
        A list or tuple of ``surgery.families.HeadKind``.

    Example::

        @hookimpl
        def surgery_head_kinds():
            return [HeadKind("cosine", ("tinynet.CosineLinear",), rebuild=rebuild_cosine)]
    """


@hookspec
def surgery_weight_readers() -> Sequence[WeightReader]:  # type: ignore[empty-body]
    """Register checkpoint formats.

    Called once for each registry, when it is loaded. A reader's ``sniff(path)`` is called for
    every file whose name ends in one of its suffixes, and ``open(path)`` where that says yes.
    A file that two readers accept is an error that names both.

    Returns:
        A list or tuple of ``surgery.families.WeightReader``.

    Example::

        @hookimpl
        def surgery_weight_readers():
            return [WeightReader("npz", (".npz",), sniff=zipfile.is_zipfile, open=read_npz)]
    """


@hookspec
def surgery_commands(cli: Commands) -> None:
    """Add commands to the ``surgery`` command line.

    Called once, after the command line's own commands were added and before arguments are
    parsed; never when surgery is used as a library. The command's parser sets ``run``, a
    function that takes the parsed arguments and returns the exit status.

    Args:
        cli: what ``argparse.ArgumentParser.add_subparsers()`` returned; add to it with
            ``cli.add_parser(name, help=...)``. A name that is taken already is an error of this
            plugin.

    Example::

        @hookimpl
        def surgery_commands(cli):
            command = cli.add_parser("greet", help="say hello")
            command.add_argument("name")
            command.set_defaults(run=lambda arguments: print(f"hello {arguments.name}") or 0)
    """
