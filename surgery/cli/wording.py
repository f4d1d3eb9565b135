"""What the library says of a mistake, in the words of the command: options for arguments.

The library's next step is Python. Where the command has an option of that name, it is the option
that is of use.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection
from typing import TypeAlias

import click

from surgery.errors import SurgeryError

_Rule: TypeAlias = tuple[str, str, Callable[[re.Match[str]], str]]

# Of a next step: the option that must be there, the code that is meant, and what to write for it.
_NEXT: tuple[_Rule, ...] = (
    ("--overwrite", r".*overwrite=True.*", lambda found: "--overwrite, or another name"),
    ("", r"Path\((['\"])(.*)\1\)\.mkdir\(.*\)", lambda found: f"mkdir -p {shlex.quote(found[2])}"),
    ("", r"read\((['\"])(.*)\1\)", lambda found: f"did you mean {found[2]}?"),
    ("", r"list\(source\.tensors\)", lambda found: "surgery inspect shows the keys of a file"),
    ("", r"for name, _ in model\..*", lambda found: "surgery audit TARGET --depth 9 shows them"),
    (
        "--option",
        r"surgery\.\w+\(.*\) with arguments .*",
        lambda found: "--option NAME=VALUE for what it needs; --debug shows where it raised",
    ),
    (
        "",
        r"surgery\.build\('package.module:callable'\)",
        lambda found: "package.module:callable, its module installed or in this directory",
    ),
    ("", r"surgery\.build\('([^']*)'\)(?: or .*)?", lambda found: f"did you mean {found[1]}?"),
    ("", r"the module itself: .*", lambda found: "a callable that returns a torch.nn.Module"),
    (
        "--weights",
        r"surgery\.load_weights\(.*, '([^']+)'\)",
        lambda found: f"a name as TARGET, and --weights {shlex.quote(found[1])}",
    ),
    (
        "--donor-weights",
        r"surgery\.load_weights\(model, checkpoint\) into .*",
        lambda found: "the model that it was saved from as DONOR, and --donor-weights FILE",
    ),
    (
        "--set-differences",
        r"surgery\.transplant\(.*match='graph', differences='set'\)(.*)",
        lambda found: f"--set-differences{found[1]}",
    ),
    (
        "--match",
        r"surgery\.align\(donor, recipient\)(.*)",
        lambda found: f"surgery align DONOR RECIPIENT{found[1]}",
    ),
    ("", r"surgery\.load_weights\(.*\)", lambda found: "a name as TARGET, and the file as SOURCE"),
    (
        "--map",
        r"surgery\.transplant\(.*\{'(.*)': '(.*)'\}\)",
        lambda found: f"--map {found[1]}={found[2]}",
    ),
    ("--map", r"list\(surgery\.tree\..*", lambda found: "surgery audit --depth 9 shows them"),
    (
        "--output",
        r"(?:surgery\.|picture\.|drawing\.).*\((?:.*, )?(?:output=)?'([^']+\.\w+)'\)",
        lambda found: f"-o {shlex.quote(found[1])}",
    ),
    (
        "--example",
        r".*example=torch\.\w+\(([\d, ]+)\).*",
        lambda found: f"--example {found[1].replace(' ', '')}",
    ),
    (
        "--example",
        r"model\.to_empty\(.*",
        lambda found: "--example with a shape that the model takes",
    ),
    (
        "--weights",
        r"steps: .*",
        lambda found: "leave it out; surgery load puts weights into a file",
    ),
    (
        "--channels",
        r".*attach=(['\"])(output.*)\1, channels=(\d+)\)",
        lambda found: f"--attach-to {shlex.quote(found[2])} --channels {found[3]}",
    ),
    (
        "--attach-to",
        r".*attach=(['\"])(output.*)\1\)?",
        lambda found: f"--attach-to {shlex.quote(found[2])}",
    ),
    ("--classes", r"classes=\[.*", lambda found: "--classes A,B,..."),
    ("--on-mismatch", r"on_mismatch=\{.*", lambda found: "--on-mismatch skip"),
    (
        "--save-recipe",
        r"paths of a recipe begin .*",
        lambda found: "the path of a file, from this directory",
    ),
    ("", r"surgery apply --help shows a recipe", lambda found: ""),
)
# Where the command has no such option: what does.
_ELSEWHERE = {
    "--rename": (r"rename=.*", "another TARGET; surgery load takes --rename and --min-coverage"),
    "--inside": (r"(inside=.*)", r"surgery.weights.read(path, \1) in Python"),
}
_MAPPING = re.compile(r"\b(rename)=\{'([^']*)': '([^']*)'\}")
_ARGUMENT = re.compile(r"\b([a-z]\w*)=(?:('[^']*'|\"[^\"]*\"|[\w.]+)|(?=\s))")
_LAST = re.compile(r"surgery\.\w+\(.*\b\w+=[\w.']+\)")
_PLACES = {"target": "TARGET", "model": "TARGET", "transplant: target": "DONOR"}
_QUOTES = "'\""
_PLACE = re.compile(r"recipe(?:: |\.)(?:steps\[\d+\]\.\w+\.)?(\w+)(?:\[.*|\..*)?")


def reword(error: SurgeryError, command: click.Command) -> None:
    """Say an error of the library as the command would.

    Args:
        error: what went wrong; it is changed.
        command: what was called.
    """
    names = {name for option in command.params for name in option.opts if name.startswith("--")}
    if isinstance(error.where, str):
        error.where = _place(error.where, names)
    for field in ("expected", "found"):
        said = getattr(error, field)
        if isinstance(said, str):
            setattr(error, field, _options(said, names))
    if error.fix is not None:
        error.fix = _next(str(error.fix), names) or f"surgery {command.name} --help"


def _place(where: str, names: Collection[str]) -> str:
    if where in _PLACES:
        return _PLACES[where]
    place = _PLACE.fullmatch(where)
    if place is None:
        return where
    option = "--option" if place[1] == "options" else _option(place[1])
    return option if option in names else where


def _next(fix: str, names: Collection[str]) -> str:
    for needed, code, words in _NEXT:
        found = re.fullmatch(code, fix, re.DOTALL)
        if found is not None and (not needed or needed in names):
            return words(found)
    for option, (code, instead) in _ELSEWHERE.items():
        if option not in names and re.fullmatch(code, fix, re.DOTALL):
            return re.sub(code, instead, fix, flags=re.DOTALL)
    last = _LAST.fullmatch(fix)
    if last is not None:
        said = _options(fix[fix.rindex(" ") + 1 : -1], names)
        return said if said.startswith("--") else fix
    return fix if fix.startswith(("surgery.", "def ")) else _options(fix, names)


def _options(text: str, names: Collection[str]) -> str:
    """Options for arguments that are written out; others stay as they are."""

    def said(found: re.Match[str]) -> str:
        option = _option(found[1])
        if option not in names:
            return found[0]
        value = found[2]
        return (
            option if value in (None, "True") else f"{option} {shlex.quote(value.strip(_QUOTES))}"
        )

    if "--rename" in names:
        text = _MAPPING.sub(lambda found: f"--rename {found[2]}={found[3]}", text)
    return text if "(" in text and "=" in text and text.endswith(")") else _ARGUMENT.sub(said, text)


def _option(argument: str) -> str:
    return "--" + argument.strip("_").replace("_", "-")
