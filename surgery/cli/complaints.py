"""What goes wrong, said in one paragraph on stderr, or as one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from difflib import get_close_matches

import click

from surgery.errors import SurgeryError

_REPORT = "run it again with --debug, and report what it shows"


def clean(text: str) -> str:
    """Write what does not print as escapes, as reports do, which help does not wait for.

    Args:
        text: a name of a plugin, a model or a file.
    """
    from surgery.reports import text as texts

    return texts.clean(text)


def say(error: SurgeryError, as_json: bool = False, kind: str | None = None) -> None:
    """Write an error to stderr.

    Args:
        error: what went wrong. Names in it are data: control characters are written as escapes.
        as_json: as one line of JSON, in place of a paragraph.
        kind: what to call it in JSON; its class, if left out.
    """
    if as_json:
        fields = ("what", "where", "expected", "found", "fix")
        said = {name: _text(getattr(error, name)) for name in fields}
        head = {"schema": "surgery/error/1", "error": kind or type(error).__name__}
        click.echo(json.dumps(head | said), err=True)
        return
    lines = [clean(line) for line in f"surgery: {error}".splitlines() if line.strip()]
    click.echo("\n".join(lines), err=True)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def of_usage(error: click.ClickException) -> SurgeryError:
    """A mistake in the arguments, and which help to read."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "surgery"
    what = " ".join(error.format_message().split()).rstrip(".")
    return SurgeryError(what, fix=f"{path} --help")


def of_ours(error: Exception, debugging: bool) -> SurgeryError:
    """An exception that nobody expected."""
    found = f"{type(error).__name__}: {error}".splitlines()[0]
    fix = "report this, with what it shows above" if debugging else _REPORT
    return SurgeryError("this is a mistake in surgery", found=found, fix=fix)


def no_command(name: str, known: Iterable[str]) -> str:
    """What to say where no command has a name.

    Example:
        >>> no_command("inspekt", ["audit", "inspect"])
        "there is no command 'inspekt': did you mean 'inspect'?"
    """
    known = list(known)
    close = get_close_matches(name, known, n=3)
    meant = " or ".join(map(repr, close))
    hint = f"did you mean {meant}?" if close else f"there are {', '.join(known)}"
    return f"there is no command {name!r}: {hint}"


def warner(as_json: bool) -> Callable[..., None]:
    """A ``warnings.showwarning`` that writes a line without the place in our code."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if as_json:
            said = {"schema": "surgery/warning/1", "warning": category.__name__}
            click.echo(json.dumps({**said, "what": str(message)}), err=True)
        else:
            click.echo(f"warning: {clean(' '.join(str(message).split()))}", err=True)

    return show
