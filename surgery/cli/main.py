"""The command ``surgery``: which commands there are, and how a run ends.

Asking for help imports no command and no torch: a command is its line in ``COMMANDS`` until it is
called. Every way to end a run is here, so that all commands end alike: 0 for done, 1 for a check
that did not hold, 2 for a mistake, 70 for a mistake of ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import click

from surgery.cli import complaints, plugged, wording
from surgery.cli.options import debug
from surgery.errors import SurgeryError

# Each command: where it is, and what it does in a line.
COMMANDS: dict[str, tuple[str, str]] = {
    "align": ("surgery.cli.align:command", "Show which tensor of one model is which of another."),
    "apply": ("surgery.cli.apply:command", "Carry out a recipe: build, change, check, write."),
    "audit": ("surgery.cli.audit:command", "Count parameters, buffers and bytes by module."),
    "diff": ("surgery.cli.diff:command", "Compare two models or checkpoints."),
    "heads": ("surgery.cli.heads:command", "Show the layers that make classes, and why."),
    "inspect": ("surgery.cli.inspect:command", "Show what a model or a checkpoint is."),
    "new-plugin": ("surgery.cli.new_plugin:command", "Write a plugin project that works."),
    "load": ("surgery.cli.load:command", "Load what fits of a checkpoint into a model."),
    "operate": ("surgery.cli.operate:command", "Another head, other inputs, frozen layers."),
    "picture": ("surgery.cli.picture:command", "Draw the graph, kernels or feature maps."),
    "plugins": (
        "surgery.cli.plugins:command",
        "Show which there are, what each claims, what fails.",
    ),
    "summary": ("surgery.cli.summary:command", "Show a model layer by layer, as torchinfo does."),
    "transplant": ("surgery.cli.transplant:command", "Put layers of one model into another."),
}

# A pipe that was closed, as shells count it; a run that was stopped; a mistake of ours.
_PIPE, _STOPPED, _OURS, _MISTAKE = 141, 130, 70, 2


class Commands(click.Group):
    """The commands of the table, each imported when it is called, and those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in order; plugins are loaded for it."""
        return sorted({*COMMANDS, *self.commands, *plugged.commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, which is imported now, or None."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name) or plugged.commands(ctx).get(cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        command.name, command.short_help = cmd_name, COMMANDS[cmd_name][1]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with.

        Raises:
            click.UsageError: there is none of this name; the closest are named.
        """
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(complaints.no_command(name, self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does, with none of the table imported."""
        own = [(name, said) for name, (_, said) in sorted(COMMANDS.items())]
        added = {**self.commands, **plugged.commands(ctx)}
        others = [
            (complaints.clean(name), complaints.clean(command.get_short_help_str(80)))
            for name, command in sorted(added.items())
            if not command.hidden
        ]
        for title, rows in ("Commands", own), ("Commands of plugins", others):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> None:
        """Call the command; what it returns is no exit status, ``ctx.exit(1)`` is.

        Raises:
            SurgeryError: what went wrong, in the words of the command.
        """
        try:
            super().invoke(ctx)
            # Where nobody reads any more this is what finds out, and not the end of the process.
            sys.stdout.flush()
        except BrokenPipeError:
            _write_nowhere()
            ctx.exit(_PIPE)
        except SurgeryError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if command is not None:
                wording.reword(error, command)
            raise

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end the process with the status that says how it went."""
        given = list(sys.argv[1:] if args is None else args)
        name = prog_name or "surgery"

        def run() -> object:
            return super(Commands, self).main(
                given,
                name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )

        if not standalone_mode:
            return run()
        flags = given[: given.index("--")] if "--" in given else given
        for stream in sys.stdout, sys.stderr:
            _let_anything_through(stream)
        with warnings.catch_warnings():
            warnings.showwarning = complaints.warner("--json" in flags)
            sys.exit(_ended(run, "--json" in flags, "--debug" in flags))


def _let_anything_through(stream: TextIO) -> None:
    """A name that the terminal's encoding lacks is written as escapes, and ends nothing."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _write_nowhere() -> None:
    """Let what is still to be written go nowhere: Python flushes once more when it ends."""
    with contextlib.suppress(OSError), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _ended(run: Any, as_json: bool, debugging: bool) -> int:
    """Run, say what went wrong, and return the exit status."""
    try:
        status = run()
    except (click.Abort, KeyboardInterrupt):
        click.echo("surgery: stopped", err=True)
        return _STOPPED
    except click.exceptions.NoArgsIsHelpError as error:
        # Whoever asks for nothing is shown what there is.
        click.echo(error.format_message(), err=True)
        return _MISTAKE
    except click.ClickException as error:
        complaints.say(complaints.of_usage(error), as_json, "UsageError")
        return _MISTAKE
    except SurgeryError as error:
        if debugging:
            traceback.print_exc()
        complaints.say(error, as_json)
        return _MISTAKE
    except Exception as error:  # whatever nobody expected, told as such
        if debugging:
            traceback.print_exc()
        complaints.say(complaints.of_ours(error, debugging), as_json, "InternalError")
        return _OURS
    return status if isinstance(status, int) else 0


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        try:
            found = version("torch-surgery")
        except PackageNotFoundError:
            found = "(not installed: run from its source)"
        click.echo(f"surgery {found}")
        ctx.exit()


@click.group(
    "surgery",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="TARGET is a catalog name (package:name), package.module:callable, or the path of a "
    'checkpoint. Completion: eval "$(_SURGERY_COMPLETE=bash_source surgery)", and zsh_source '
    "or fish_source likewise.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@debug
def cli() -> None:
    """Change any PyTorch model, and prove that only what you meant changed."""


def main() -> None:
    """The entry point of ``surgery``."""
    cli.main()
