"""What a recipe expects: a small language of comparisons, parsed with ``ast`` and never run.

Comparisons, ``and``, ``or``, ``not``, ``in``, arithmetic of numbers without powers, lists,
mappings, ``x[y]`` and ``len(x)`` over the names in ``surgery.recipes.facts``. There is no way to
reach an attribute, call anything else or make a value larger than the text that describes it.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from surgery.errors import RecipeError
from surgery.recipes.facts import KNOWN, Facts, Kind
from surgery.weights.brief import brief

LONGEST = 500
_EXAMPLE = "expect: trainable_ratio < 0.1"

_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, where: item in where,
    ast.NotIn: lambda item, where: item not in where,
}
_COMPUTED: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_EQUAL = (ast.Eq, ast.NotEq)
_WITHIN = (ast.In, ast.NotIn)


@dataclass(frozen=True)
class Expression:
    """A text that was understood.

    Attributes:
        text: as it was written.
        tree: what it says.
        names: the facts that it asks for, in order.
    """

    text: str
    tree: ast.expr
    names: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What became of an expectation.

    Attributes:
        holds: whether it does.
        values: of the names in it.
    """

    holds: bool
    values: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name} is {_number(value)}" for name, value in self.values.items())


def parse(text: str) -> Expression:
    """Understand an expectation, without any model.

    Args:
        text: what the recipe says.

    Raises:
        RecipeError: it is no expression, asks for what nobody knows, or can never be answered.

    Example:
        >>> parse("parameters == 11_179_077 and num_classes in [5, 6]").names
        ('parameters', 'num_classes')
    """
    if len(text) > LONGEST:
        raise _wrong("this expectation is too long", f"at most {LONGEST} characters", text)
    try:
        with warnings.catch_warnings():
            # A text with an unknown escape is a warning of Python's, to whoever runs this.
            warnings.simplefilter("error", SyntaxWarning)
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = getattr(error, "msg", None) or str(error)
        raise _wrong(f"this is no expression: {said}", "a comparison", text) from error
    try:
        kind = _kind(tree)
    except RecursionError as error:
        raise _wrong("this expectation is nested too deep", "a comparison", text) from error
    if kind not in ("truth", "any"):
        raise _wrong("an expectation is something that holds or does not", "a comparison", text)
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in KNOWN]
    return Expression(text.strip(), tree, tuple(dict.fromkeys(names)))


def answer(expression: Expression, facts: Facts) -> Answer:
    """Ask a model whether an expectation holds.

    Args:
        expression: what was parsed.
        facts: of the model.

    Returns:
        Whether it holds, and what the names in it stand for.

    Raises:
        RecipeError: it has no answer for this model: a division by zero, nothing at an index.
        SurgeryError: a fact could not be found out, as when the model cannot be recorded.

    Example:
        >>> from torch import nn
        >>> print(answer(parse("parameters == 6 and trainable_ratio < 1"), Facts(nn.Linear(2, 2))))
        parameters is 6, trainable_ratio is 1
    """
    values = {name: KNOWN[name].find(facts) for name in expression.names}
    try:
        holds = bool(_evaluate(expression.tree, values))
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise RecipeError(
            f"this expectation has no answer: {type(error).__name__}: {error}",
            expected=expression.text,
            found=str(Answer(False, values)),
            fix=_EXAMPLE,
        ) from error
    return Answer(holds, values)


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    def of(inner: ast.expr) -> Any:
        return _evaluate(inner, values)

    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [of(item) for item in items]
        case ast.Dict(keys=keys, values=items):
            return {of(k): of(v) for k, v in zip(keys, items, strict=True) if k is not None}
        case ast.BoolOp(op=op, values=parts):
            answers = (bool(of(part)) for part in parts)
            return all(answers) if isinstance(op, ast.And) else any(answers)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not of(inner)
        case ast.UnaryOp(op=op, operand=inner):
            return _numeric(of(inner)) * (-1 if isinstance(op, ast.USub) else 1)
        case ast.BinOp(left=left, op=op, right=right):
            return _COMPUTED[type(op)](_numeric(of(left)), _numeric(of(right)))
        case ast.Subscript(value=inner, slice=index):
            return of(inner)[of(index)]
        case ast.Call(args=[inner]):
            return len(of(inner))
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [of(left), *map(of, others)]
            pairs = zip(ops, sides, sides[1:], strict=False)
            return all(_COMPARED[type(op)](one, other) for op, one, other in pairs)
    raise _wrong("this is not understood in an expectation", "a comparison", ast.unparse(node))


def _numeric(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(
            "only numbers can be reckoned with",
            expected="a number",
            found=brief(value),
            fix=_EXAMPLE,
        )
    return value


def _kind(node: ast.expr) -> Kind:
    """What an expression yields; refuses what no model can give an answer to."""
    match node:
        case ast.Constant(value=value):
            return _kind_of_constant(value, node)
        case ast.Name(id=name):
            return _kind_of_name(name)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                _kind(item)
            return "list"
        case ast.Dict(keys=keys, values=items) if None not in keys:
            for key in keys:
                if key is not None and _kind(key) not in ("text", "number"):
                    raise _wrong("a key is text or a number", "text", ast.unparse(key))
            for item in items:
                _kind(item)
            return "mapping"
        case ast.BoolOp(values=parts):
            for part in parts:
                if _kind(part) not in ("truth", "any"):
                    raise _wrong("and, or, not join comparisons", "a comparison", ast.unparse(part))
            return "truth"
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            if _kind(inner) not in ("truth", "any"):
                raise _wrong("and, or, not join comparisons", "a comparison", ast.unparse(inner))
            return "truth"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
            return _number_kind(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _COMPUTED:
            _number_kind(left)
            return _number_kind(right)
        case ast.Subscript(value=inner, slice=index) if not isinstance(index, ast.Slice):
            if _kind(inner) not in ("list", "mapping", "any"):
                raise _wrong("this has no parts", "a list or a mapping", ast.unparse(inner))
            _kind(index)
            return "any"
        case ast.Call(func=ast.Name(id="len"), args=[inner], keywords=[]):
            if _kind(inner) not in ("list", "mapping", "text", "any"):
                raise _wrong("this has no length", "a list or a mapping", ast.unparse(inner))
            return "number"
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(left, ops, others)
    raise _wrong(
        "this is not understood in an expectation",
        "names, numbers, text, lists, comparisons, and, or, not, in, + - * / // %, x[y], len(x)",
        ast.unparse(node),
    )


def _compared(left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]) -> Kind:
    sides = [left, *others]
    kinds = [_kind(side) for side in sides]
    for position, op in enumerate(ops):
        one, other = kinds[position : position + 2]
        shown = ast.unparse(ast.Compare(sides[position], [op], [sides[position + 1]]))
        if type(op) not in _COMPARED:
            raise _wrong("'is' compares objects", "== or !=", shown)
        if isinstance(op, _WITHIN):
            if other not in ("list", "mapping", "text", "any"):
                raise _wrong("nothing can be in this", "a list or a mapping", shown)
        elif isinstance(op, _EQUAL):
            if "any" not in (one, other) and one != other:
                raise _wrong(f"a {one} never equals a {other}", f"another {one}", shown)
        elif not {one, other} <= {"number", "any"}:
            raise _wrong("only numbers have an order", "numbers", shown)
    return "truth"


def _kind_of_constant(value: object, node: ast.expr) -> Kind:
    if value is None:
        return "nothing"
    kinds: dict[type, Kind] = {bool: "truth", int: "number", float: "number", str: "text"}
    kind = kinds.get(type(value))
    if kind is None:
        raise _wrong("an expectation has no such values", "a number or text", ast.unparse(node))
    return kind


def _kind_of_name(name: str) -> Kind:
    if name in KNOWN:
        return KNOWN[name].kind
    close = get_close_matches(name, KNOWN, n=1)
    raise RecipeError(
        f"nobody knows what {brief(name)} is",
        expected=close[0] if close else ", ".join(KNOWN),
        found=name,
        fix=f"expect: {close[0]} ..." if close else _EXAMPLE,
    )


def _number_kind(node: ast.expr) -> Kind:
    if _kind(node) not in ("number", "any"):
        raise _wrong("only numbers can be reckoned with", "a number", ast.unparse(node))
    return "number"


def _number(value: Any) -> str:
    if type(value) is int:
        return f"{value:_}"
    return f"{value:.10g}" if type(value) is float else brief(value, 200)


def _wrong(what: str, expected: str, found: str) -> RecipeError:
    return RecipeError(what, expected=expected, found=brief(found), fix=_EXAMPLE)
