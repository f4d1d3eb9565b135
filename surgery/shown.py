"""How values show themselves without knowing how they are shown.

Imports point one way, and ``surgery.reports`` stands above the values it lowers, so a value
cannot import its own lowering. It inherits from ``Shown`` instead, and ``Shown`` looks in a table
of forms ("text", "html", ...). The first value that is shown in a form causes the import of the
file in ``surgery.reports`` that registers it, by name; until then neither rich nor the reports are
loaded, and a text never loads what makes a page.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

# Filled by the files of ``surgery.reports``: the name of a form, and what lowers a value to it.
FORMS: dict[str, Callable[..., str]] = {}


def lower(value: object, form: str, **options: Any) -> str:
    """Lower a value to a form that ``surgery.reports`` has registered.

    Args:
        value: anything that reports know how to describe.
        form: ``text``, ``json`` or ``html``.
        options: what that lowering takes, for instance ``depth`` and ``width`` of a text.

    Returns:
        The value in that form.

    Raises:
        ArgumentError: there is no such form or option, or nobody can describe this value.
    """
    own = import_module("surgery.reports").FORMS
    if form in own:
        import_module(f"surgery.reports.{form}")
    lowering = FORMS.get(form)
    if lowering is None:
        from surgery.errors import ArgumentError

        raise ArgumentError(
            f"reports have no form called {form!r}",
            where="form",
            expected=" or ".join(sorted({*FORMS, *own})),
            found=repr(form),
            fix="surgery.report(value, 'text')",
        )
    _check_options(form, lowering, options)
    return lowering(value, **options)


def _check_options(form: str, lowering: Callable[..., str], options: Mapping[str, object]) -> None:
    _, *known = inspect.signature(lowering).parameters
    for name in options:
        if name not in known:
            from surgery.errors import ArgumentError

            raise ArgumentError(
                f"the form {form!r} has no option {name!r}",
                where=name,
                expected=", ".join(known),
                found=name,
                fix=f"surgery.report(value, {form!r})",
            )


class Shown:
    """A value that prints as the text that reports make of it; notebooks show it as HTML."""

    __slots__ = ()

    def __str__(self) -> str:
        return lower(self, "text")

    def _repr_html_(self) -> str:
        return lower(self, "html", page=False)
