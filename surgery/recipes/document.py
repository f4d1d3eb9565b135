"""A YAML file as plain data, with the place of every value.

Recipes keep to the part of YAML that everybody reads the same way. ``true`` and ``false`` are the
only words that are no text (YAML 1.1 takes ``no`` for false and ``1:30`` for 90), and what makes
one place stand for another (anchors, aliases, merges, tags) is refused: nothing can grow, nothing
is constructed, and every value has exactly one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from surgery.errors import RecipeError
from surgery.weights.brief import brief

Path: TypeAlias = tuple[str | int, ...]

LONGEST = 1 << 20
# At the end of a path: the place of the key, and not of its value.
AT_KEY = "\0key"
_DEEPEST = 32
_SHOWN = 20
_MAP, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_TEXT = "tag:yaml.org,2002:str"

_PLAIN = (
    ("null", re.compile(r"null|~|"), ["n", "~", ""]),
    ("bool", re.compile(r"true|false"), list("tf")),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"[-+]?([0-9]+(_[0-9]+)*\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?"
            r"|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan"
        ),
        list("-+0123456789."),
    ),
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe.

    Attributes:
        place: ``file:line:column``.
        what: a sentence.
        expected: what would be right.
        found: what is there.
        fix: the next step.
    """

    place: str
    what: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what} (expected {self.expected}; found {self.found})"


@dataclass
class Document:
    """What a file says, and where.

    Attributes:
        name: of the file.
        value: its content.
        places: line and column of each value, from 1, by its path from the root.
        problems: what is wrong with it as YAML.
    """

    name: str
    value: Any = None
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Iterable[str | int]) -> str:
        """Where a value is: its own place, or that of what would hold it."""
        path = tuple(path)
        while path and path not in self.places:
            path = path[:-1]
        line, column = self.places.get(path, (1, 1))
        return f"{self.name}:{line}:{column}"


class _Loader(yaml.SafeLoader):
    """Text to nodes, by the rules above."""


class _Dumper(yaml.SafeDumper):
    """Data to text that the loader above and any other reads alike."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Between other quotes, separators of lines that few people know would become spaces.
    return dumper.represent_scalar(_TEXT, text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _text_node)
_Loader.yaml_implicit_resolvers = {}
for _name, _form, _first in _PLAIN:
    _whole = re.compile(rf"^(?:{_form.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, _first)


def to_yaml(data: Any) -> str:
    """Write plain data as YAML.

    Example:
        >>> print(to_yaml({"classes": ["no", "1"], "rate": 1e-5}), end="")
        classes: ['no', '1']
        rate: 1.0e-05
    """
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96, default_flow_style=None
    )


def parse_yaml(text: str, name: str) -> Document:
    r"""Read plain data, and note where each part of it is.

    Args:
        text: the content of a file that nobody has checked.
        name: of the file, for errors.

    Returns:
        The data, the places, and what is wrong as far as reading could go on behind it.

    Raises:
        RecipeError: it is no YAML, or of a kind that no recipe needs.

    Example:
        >>> document = parse_yaml("steps:\n- freeze: {norm: eval}", "r.yaml")
        >>> document.value, document.place(("steps", 0, "freeze", "norm"))
        ({'steps': [{'freeze': {'norm': 'eval'}}]}, 'r.yaml:2:18')
    """
    document = Document(name)
    if len(text) > LONGEST:
        raise failure(
            name,
            [
                Problem(
                    name,
                    "this is too long for a recipe",
                    f"at most {LONGEST:,} characters",
                    f"{len(text):,}",
                    "is it the right file?",
                )
            ],
        )
    try:
        _check_events(text, name)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise failure(name, [_no_yaml(error, name)]) from error
    if node is not None:
        document.value = _value(node, (), document)
    return document


def failure(name: str, problems: Iterable[Problem]) -> RecipeError:
    """The error that says all that is wrong in a recipe."""
    found = sorted(set(problems), key=_order)
    if len(found) == 1:
        only = found[0]
        return RecipeError(
            only.what, where=only.place, expected=only.expected, found=only.found, fix=only.fix
        )
    lines = [str(problem) for problem in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more")
    return RecipeError(
        f"{len(found)} things are wrong in this recipe",
        where=name or "the recipe",
        found="\n".join(lines),
        fix=found[0].fix,
    )


def _order(problem: Problem) -> tuple[Any, ...]:
    _, *numbers = problem.place.rsplit(":", 2)
    return tuple(int(n) for n in numbers if n.isdigit()), problem.what


def _check_events(text: str, name: str) -> None:
    """Refuse what nodes should not be made of: the parser of events keeps no stack of calls."""
    deep = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark: Any = event.start_mark
        line, column = mark.line + 1, mark.column + 1
        wrong = None
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                wrong = ("a file is one recipe", "one document", "a second one", "split it in two")
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            wrong = (
                "a recipe has no anchors and no aliases",
                "the value itself",
                brief(f"{sign}{getattr(event, 'anchor', '')}"),
                "write it out; text that begins with * or & needs quotes",
            )
        elif isinstance(event, yaml.CollectionStartEvent):
            deep += 1
            if deep > _DEEPEST:
                wrong = ("this is nested too deep", f"{_DEEPEST} levels", "more", "flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            deep -= 1
        if wrong is not None:
            raise failure(name, [Problem(f"{name}:{line}:{column}", *wrong)])


def _no_yaml(error: yaml.YAMLError, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else f"{name}:1:1"
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    tab = "'\\t'" in said
    fix = "spaces for tabs" if tab else "put text with ': ', ' #' or brackets in quotes"
    return Problem(place, "this is no YAML", "YAML", brief(said, 200), fix)


def _value(node: yaml.Node, path: Path, document: Document) -> Any:
    document.places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
        return [_value(item, (*path, i), document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, document)
    return _refused_tag(node, path, document)


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _value(key_node, (*path, AT_KEY), document)
        here = document.places.pop((*path, AT_KEY))
        place = f"{document.name}:{here[0]}:{here[1]}"
        if isinstance(key, list | dict) or key is None:
            what = ("a key is text or a number", "text", brief(key), "quote it")
            document.problems.append(Problem(place, *what))
            continue
        if key in found:
            first = document.places.get((*path, key), here)
            document.problems.append(
                Problem(
                    place,
                    f"this key is there twice: {brief(key)}",
                    "each key once",
                    f"the first one in line {first[0]}",
                    "remove one of them",
                )
            )
            continue
        found[key] = _value(value_node, (*path, key), document)
        document.places[*path, key, AT_KEY] = here
    return found


def _scalar(node: yaml.ScalarNode, path: Path, document: Document) -> Any:
    kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
    if node.tag == _TEXT:
        return text
    if kind == "null" and _PLAIN[0][1].fullmatch(text):
        return None
    if kind == "bool" and _PLAIN[1][1].fullmatch(text):
        return text == "true"
    if kind == "int" and _PLAIN[2][1].fullmatch(text) and len(text) < 40:
        return int(text.replace("_", ""))
    if kind == "float" and _PLAIN[3][1].fullmatch(text):
        return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    return _refused_tag(node, path, document)


def _refused_tag(node: yaml.Node, path: Path, document: Document) -> None:
    document.problems.append(
        Problem(
            document.place(path),
            "a recipe holds plain data and nothing else",
            "text, numbers, true, false, null, lists and mappings",
            brief(node.tag.replace("tag:yaml.org,2002:", "!!")),
            "write the value itself",
        )
    )
