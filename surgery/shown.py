"""How values show themselves without knowing how they are shown.

Imports point one way, and ``surgery.reports`` stands above the values it lowers, so a value
cannot import its own lowering. It inherits from ``Shown`` instead, and ``Shown`` looks in a table
of forms ("text", "html", ...) that ``surgery.reports`` fills when it is imported. The first value
that is shown causes that import, by name; until then neither rich nor the reports are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Filled by the files of ``surgery.reports``: the name of a form, and what lowers a value to it.
FORMS: dict[str, Callable[..., str]] = {}


def lower(value: object, form: str, **options: Any) -> str:
    """Lower a value to a form that ``surgery.reports`` has registered.

    Args:
        value: anything that reports know how to describe.
        form: ``text`` or ``json``.
        options: what that lowering takes, for instance ``depth`` and ``width`` of a text.

    Returns:
        The value in that form.

    Raises:
        ArgumentError: there is no such form, or nobody knows how to describe this value.
    """
    import_module("surgery.reports")
    lowering = FORMS.get(form)
    if lowering is None:
        from surgery.errors import ArgumentError

        raise ArgumentError(
            f"reports have no form called {form!r}",
            where="form",
            expected=" or ".join(sorted(FORMS)),
            found=repr(form),
            fix=f"surgery.shown.lower(value, {min(FORMS)!r})",
        )
    return lowering(value, **options)


class Shown:
    """A value that prints as the text that reports make of it."""

    __slots__ = ()

    def __str__(self) -> str:
        return lower(self, "text")
