from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery import errors
from surgery.errors import AddressError, SurgeryError

ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value)
    and issubclass(value, SurgeryError)
    and value.__module__ == "surgery.errors"
]
fields = st.fixed_dictionaries(
    {},
    optional={
        "where": st.text(min_size=1),
        "expected": st.one_of(st.text(min_size=1), st.integers(), st.tuples(st.integers())),
        "found": st.one_of(st.text(min_size=1), st.floats(allow_nan=False)),
        "fix": st.text(min_size=1),
    },
)


def drawn_tree() -> dict[str, tuple[str | None, str]]:
    """Name -> (parent, remark), read from the drawing in the module's docstring."""
    drawn: dict[str, tuple[str | None, str]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+Error)(.*)", line)
        if match:
            depth = len(match[1])
            while above and above[-1][0] >= depth:
                above.pop()
            drawn[match[2]] = (above[-1][1] if above else None, match[3])
            above.append((depth, match[2]))
    return drawn


def test_the_drawing_in_the_docstring_is_the_class_tree():
    real = {
        error.__name__: None if error is SurgeryError else error.__mro__[1].__name__
        for error in ERRORS
    }
    assert {name: parent for name, (parent, _) in drawn_tree().items()} == real


def test_what_is_no_surgery_error_is_a_warning():
    others = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and value.__module__ == "surgery.errors"
    } - set(ERRORS)
    assert all(issubclass(other, UserWarning) and other.__doc__ for other in others)


def test_the_drawing_says_which_builtin_each_error_also_is():
    for name, (_, remark) in drawn_tree().items():
        promised = set(re.findall(r"also an? (\w+)", remark))
        bases = {
            base.__name__
            for base in getattr(errors, name).__bases__
            if getattr(builtins, base.__name__, None) is base and base is not Exception
        }
        assert promised == bases, name


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_caught_as_a_surgery_error_and_documented(error):
    with pytest.raises(SurgeryError) as caught:
        raise error("what is wrong")
    assert type(caught.value) is error
    assert str(caught.value) == "what is wrong"
    assert error.__doc__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@given(what=st.text(), given_fields=fields)
def test_an_error_keeps_its_fields_and_shows_those_it_has_in_order(error, what, given_fields):
    raised = error(what, **given_fields)
    shown = str(raised)
    assert raised.what == what
    assert shown.startswith(what)
    position = len(what)
    for name, label in (
        ("where", "where"),
        ("expected", "expected"),
        ("found", "found"),
        ("fix", "next"),
    ):
        assert getattr(raised, name) == given_fields.get(name)
        line = f"\n  {label}: "
        if name in given_fields:
            body = str(given_fields[name]).replace("\n", "\n    ")
            assert shown[position:].startswith(line + body)
            position += len(line + body)
    assert position == len(shown)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_an_error_travels_between_processes(error, again):
    sent = error("what", where="a.b", expected=3, found=(4, 5), fix="f(x)")
    received = again(sent)
    assert type(received) is error
    assert str(received) == str(sent)
    assert vars(received) == vars(sent)


def test_an_address_error_reads_as_a_sentence_although_it_is_a_key_error():
    assert str(AddressError("nothing is called 'x'")) == "nothing is called 'x'"
    with pytest.raises(KeyError):
        raise AddressError("nothing is called 'x'")


def test_a_fix_of_several_lines_stays_indented():
    assert str(SurgeryError("no", fix="a()\nb()")) == "no\n  next: a()\n    b()"
