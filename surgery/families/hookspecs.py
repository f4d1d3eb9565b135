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
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from surgery.families.family import Family
    from surgery.families.kinds import HeadKind, WeightReader
    from surgery.families.wrapping import Wrapping

PROJECT = "surgery"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


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
def surgery_wrappings() -> Sequence[Wrapping]:  # type: ignore[empty-body]
    """Register what a library puts around models and layers: adapters, hooks that move weights.

    Called once for each registry, when it is loaded. It must not import the library: a wrapping
    is told by the qualified name of its class, or by an attribute that it hangs on modules.

    Returns:
        A list or tuple of ``surgery.families.Wrapping``.

    Example::

        @hookimpl
        def surgery_wrappings():
            return [Wrapping("adapted model", ("adapters.AdaptedModel",), carries="model")]
    """


@hookspec
def surgery_commands(cli: click.Group) -> None:
    """Add commands to the ``surgery`` command line.

    Called once for each run of the command line that needs it: when help or completion lists the
    commands, and when a name is called that is no command of its own; never when surgery is used
    as a library. A command is any ``click.Command``, so that groups of commands are fine too. A
    ``SurgeryError`` that it raises ends the run with one paragraph and status 2, and
    ``ctx.exit(1)`` with that status; what it returns is not looked at.

    Args:
        cli: a ``click.Group``; add to it with ``@cli.command()`` or ``cli.add_command(...)``. A
            name that is taken already is an error of this plugin, which then adds nothing.

    Example::

        @hookimpl
        def surgery_commands(cli):
            @cli.command()
            @click.argument("name")
            def greet(name):
                "Say hello."
                click.echo(f"hello {name}")
    """
