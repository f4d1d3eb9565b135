"""The plugins in force for a run, and the commands they add."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import click

from surgery.cli import complaints
from surgery.families.registry import Registry, default_registry

# The commands of each registry: plugins are asked once, whether for help or for a name.
_ADDED: WeakKeyDictionary[Registry, Mapping[str, click.Command]] = WeakKeyDictionary()


def registry(ctx: click.Context | None = None) -> Registry:
    """The plugins of this run: those handed in as ``obj`` (in tests), or those installed.

    Args:
        ctx: the run; the current one, if left out.
    """
    ctx = ctx or click.get_current_context(silent=True)
    return (ctx.find_object(Registry) if ctx is not None else None) or default_registry()


def commands(ctx: click.Context) -> Mapping[str, click.Command]:
    """The commands that plugins add, by name; what fails is a line on stderr.

    Args:
        ctx: the run.
    """
    from surgery.cli.main import COMMANDS

    plugins = registry(ctx)
    if plugins not in _ADDED:
        added = click.Group()
        for failed in plugins.add_commands(added, COMMANDS):
            said = f"{failed.error.what}; {failed.error.found or ''}".splitlines()[0]
            click.echo(complaints.clean(f"warning: {said} (surgery plugins)"), err=True)
        _ADDED[plugins] = added.commands
    return _ADDED[plugins]
