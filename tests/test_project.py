"""The project's own shape: what CONTRIBUTING.md asks for, checked.

A rule is a function from one source file to what is wrong in it. Every rule runs over the whole
project, and over a bad snippet that it has to catch.
"""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torchvision

import surgery
from surgery.errors import SurgeryError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Source:
    """One Python file: where it is in the project, and what it says."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        dotted = self.path.removeprefix("plugins/").removesuffix(".py").replace("/", ".")
        return dotted.removesuffix(".__init__")

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


def sources(*folders: str) -> list[Source]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


CORE = sources("surgery")
PRODUCT = sources("surgery", "plugins")
EVERYTHING = sources("surgery", "plugins", "tests", "benchmarks", "examples")
Rule = Callable[[Source], Iterator[str]]


# Which file may import which: a lower number never a higher one, nor a neighbour on its level.
LEVELS = {
    name: level
    for level, names in enumerate(
        [
            ("errors",),
            ("shown", "wrappers", "patterns"),
            ("tree",),
            ("inventory",),
            ("tally",),
            ("graph",),
            ("families",),
            ("recording", "facts", "owners"),
            ("findings", "splits"),
            ("claims",),
            ("survey",),
            ("heads",),
            ("parameters", "weights", "deferred"),
            ("layers",),
            ("operations",),
            ("optimizers", "recipes", "pictures"),
            ("reports",),
            ("cli",),
            ("testing",),
        ]
    )
    for name in names
}
# The first value that is shown fetches the lowerings, by name: nothing else looks up.
LOOKS_UP = {("shown", "reports")}


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at the top or inside a function: line and dotted name."""
    for node in source.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = source.module.split(".")
            if not source.path.endswith("__init__.py"):
                package = package[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (
                (node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name]))
                for alias in node.names
            )
    for node in source.nodes(ast.Call):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def imports_point_one_way(source: Source) -> Iterator[str]:
    if source.module == "surgery":
        return
    own = source.module.split(".")[1]
    if own not in LEVELS:
        yield f"{source.path}: {own} has no place in the order of imports"
        return
    for line, name in imported(source):
        parts = name.split(".")
        if parts[0] != "surgery":
            continue
        other = parts[1] if len(parts) > 1 else ""
        if other not in LEVELS:
            yield f"{source.path}:{line}: imports {name}: the door, or a file without a place"
        elif other != own and LEVELS[other] >= LEVELS[own] and (own, other) not in LOOKS_UP:
            yield f"{source.path}:{line}: {own} imports {other}"


DEPENDENCIES = {
    *("surgery", "torch", "pluggy", "torchinfo", "safetensors", "rich", "click"),
    *("jinja2", "markupsafe", "jsonschema", "yaml", "plotly", "igraph"),
}


# Pictures are made by these, and by nothing else of the library that they come with.
PICTURES = "surgery/pictures/"
IMAGES = ("torchvision.utils.", "PIL.")
IMAGES_LINE = re.compile(r"from torchvision\.utils import [a-z_]+(, [a-z_]+)*")


def imports_no_framework(source: Source) -> Iterator[str]:
    allowed = DEPENDENCIES | set(sys.stdlib_module_names)
    if source.path.startswith("plugins/"):
        allowed = allowed | {"surgery_plugins"}
    for line, name in imported(source):
        if source.path.startswith(PICTURES) and name.startswith(IMAGES):
            continue
        if name.split(".")[0] not in allowed:
            yield f"{source.path}:{line}: imports {name}"


def architecture_words() -> tuple[str, ...]:
    """Names of architectures, from torchvision's own list, and of the libraries that hold them."""
    names = {
        match[0]
        for name in torchvision.models.list_models()
        for part in name.split("_")
        if (match := re.match(r"[a-z]{3,}", part))
    }
    plain = {"wide", "quantized", "large", "small", "mobile", "base", "tiny", "heavy", "lite"}
    plain |= {"net", "raft"}
    libraries = {"timm", "transformers", "huggingface", "torchvision", "detectron", "ultralytics"}
    others = {"bert", "gpt", "llama", "clip", "dino", "yolo", "efficientnet", "nasnet"}
    return tuple(sorted((names - plain) | libraries | others))


ARCHITECTURES = re.compile(
    "|".join(
        # A short name must stand alone (`vit` is in "activity"); a long one may be part of a word.
        rf"(?<![a-z]){word}(?![a-z])" if len(word) < 6 or word == "transformers" else word
        for word in architecture_words()
    )
)


def names_no_architecture(source: Source) -> Iterator[str]:
    lines = source.text.splitlines()
    for node in source.nodes(ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
        doc = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
        if doc is None:
            continue
        statement = node.body[0]  # type: ignore[attr-defined]
        prose = doctest.DocTestParser().parse(doc)
        for number in range(statement.lineno - 1, statement.end_lineno):
            lines[number] = ""
        lines[statement.lineno - 1] = " ".join(
            part.replace("\n", " ") for part in prose if isinstance(part, str)
        )
    for number, line in enumerate(lines, 1):
        if source.path.startswith(PICTURES) and IMAGES_LINE.fullmatch(line):
            continue
        camel = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", line)
        for found in {*ARCHITECTURES.findall(line.lower()), *ARCHITECTURES.findall(camel.lower())}:
            yield f"{source.path}:{number}: names {found}"


def swallows_no_exception(source: Source) -> Iterator[str]:
    for node in source.nodes(ast.ExceptHandler):
        if node.type is None:
            yield f"{source.path}:{node.lineno}: bare except"
        if all(
            isinstance(step, ast.Pass)
            or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
            for step in node.body
        ):
            yield f"{source.path}:{node.lineno}: an exception ends here and nobody hears of it"
    for node in source.nodes(ast.Call):
        if re.search(r"suppress\(.*\b(Base)?Exception\b", ast.unparse(node)):
            yield f"{source.path}:{node.lineno}: suppresses everything"


BUILTIN_ERRORS = {
    *("Exception", "BaseException", "ValueError", "TypeError", "KeyError", "IndexError"),
    *("RuntimeError", "NotImplementedError", "LookupError", "AssertionError", "ImportError"),
}


def raises_its_own_errors(source: Source) -> Iterator[str]:
    """A builtin error is for a protocol that asks for it (``__getattr__``, ``__getitem__``)."""
    protocol = {
        id(inner)
        for function in source.nodes(ast.FunctionDef)
        if function.name.startswith("__")
        for inner in ast.walk(function)
    }
    for node in source.nodes(ast.Assert):
        yield f"{source.path}:{node.lineno}: assert"
    for node in source.nodes(ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if (
            isinstance(raised, ast.Name)
            and raised.id in BUILTIN_ERRORS
            and id(node) not in protocol
        ):
            yield f"{source.path}:{node.lineno}: raises {raised.id}"


def descendants(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def errors_say_what_to_do_next(source: Source) -> Iterator[str]:
    names = {"SurgeryError", *(error.__name__ for error in descendants(SurgeryError))}
    for node in source.nodes(ast.Call):
        name = ast.unparse(node.func).split(".")[-1]
        given = {keyword.arg for keyword in node.keywords}
        if name in names and "fix" not in given and None not in given:
            yield f"{source.path}:{node.lineno}: {name} without fix="


def ignores_types_by_code(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if re.search(r"#\s*type:\s*ignore(?!\[)", line) or re.search(r"#\s*noqa(?!:)", line):
            yield f"{source.path}:{number}: ignores without saying what"


def stays_short(source: Source) -> Iterator[str]:
    limit = 120 if source.path.startswith("plugins/surgery_plugins/") else 500
    length = len(source.text.splitlines())
    if length > limit:
        yield f"{source.path}: {length} lines, over {limit}: probably two concepts"


def needs_no_scrolling(source: Source) -> Iterator[str]:
    for node in source.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        first = node.body[0]
        said = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
        length = node.end_lineno - node.lineno + 1 - said
        if length > 60:
            yield f"{source.path}:{node.lineno}: {node.name} has {length} lines"


def names_one_concept(source: Source) -> Iterator[str]:
    for part in source.module.split("."):
        if part in {"utils", "util", "helpers", "helper", "common", "misc", "base"}:
            yield f"{source.path}: {part} is no concept"


def bears_no_name_of_the_door(source: Source) -> Iterator[str]:
    """``import surgery.freeze`` would put the module where the function of that name belongs."""
    parts = source.module.split(".")
    if len(parts) == 2 and parts[1] in surgery.__all__:
        yield f"{source.path}: hides surgery.{parts[1]}"


core, plugin = "surgery/graph/x.py", "plugins/surgery_plugins/x.py"
RULES: list[tuple[Rule, list[Source], list[Source]]] = [
    (
        imports_point_one_way,
        CORE,
        [
            Source(core, "def f():\n    from surgery.operations import plan"),
            Source(core, "import surgery.heads"),
            Source(core, "from surgery import heads"),
            Source(core, "from .. import heads"),
            Source(core, "import surgery"),
            Source(core, "import importlib\nimportlib.import_module('surgery.cli.main')"),
            Source("surgery/parameters.py", "from surgery.weights import source"),
            Source("surgery/elsewhere.py", ""),
        ],
    ),
    (
        imports_no_framework,
        PRODUCT,
        [
            Source(plugin, "def f():\n    import torchvision"),
            Source(core, "import surgery_plugins"),
            Source(core, "from torchvision.utils import make_grid"),
            Source(PICTURES + "x.py", "from torchvision.models import list_models"),
            Source(PICTURES + "x.py", "from torchvision import utils"),
        ],
    ),
    (
        names_no_architecture,
        CORE,
        [
            Source(core, "def is_resnet50(m): ..."),
            Source(core, "x = 'a VGG-16'"),
            Source(core, "class SwinBlock: ..."),
            Source(core, "# as timm does"),
            Source(core, '"""Made for vit."""'),
            Source(core, "from torchvision.utils import make_grid"),
            Source(PICTURES + "x.py", "import torchvision.utils"),
            Source(PICTURES + "x.py", "x = 1  # as torchvision does"),
        ],
    ),
    (
        swallows_no_exception,
        PRODUCT,
        [
            Source(core, "try:\n    f()\nexcept:\n    g()"),
            Source(core, "try:\n    f()\nexcept KeyError:\n    pass"),
            Source(core, "try:\n    f()\nexcept KeyError:\n    ..."),
            Source(core, "with contextlib.suppress(Exception):\n    f()"),
        ],
    ),
    (
        raises_its_own_errors,
        PRODUCT,
        [
            Source(core, "assert x"),
            Source(core, "raise ValueError('no')"),
            Source(core, "def f():\n    raise NotImplementedError"),
        ],
    ),
    (errors_say_what_to_do_next, PRODUCT, [Source(core, "raise errors.HeadError('which?')")]),
    (
        ignores_types_by_code,
        EVERYTHING,
        [Source(core, "x = 1  # type: " + "ignore"), Source(core, "x = 1  # no" + "qa")],
    ),
    (
        stays_short,
        EVERYTHING,
        [Source(core, "\n" * 501), Source(plugin, "\n" * 121)],
    ),
    (needs_no_scrolling, PRODUCT, [Source(core, "def f():\n" + "    g()\n" * 61)]),
    (names_one_concept, EVERYTHING, [Source("surgery/utils.py", "")]),
    (bears_no_name_of_the_door, CORE, [Source("surgery/Graph.py", "")]),
]


@pytest.mark.parametrize(("rule", "files"), [(rule, files) for rule, files, _ in RULES])
def test_the_project_keeps_the_rule(rule: Rule, files: list[Source]):
    assert files
    wrong = [finding for source in files for finding in rule(source)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("rule", "bad"), [(rule, bad) for rule, _, snippets in RULES for bad in snippets]
)
def test_the_rule_catches(rule: Rule, bad: Source):
    assert list(rule(bad))


def test_every_package_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(
        source.module for source in PRODUCT if source.path.endswith("/__init__.py")
    )


def test_every_hook_is_documented_and_tested():
    contract = next(source for source in CORE if source.path == "surgery/families/hookspecs.py")
    hooks = [node.name for node in contract.tree.body if isinstance(node, ast.FunctionDef)]
    manual = (ROOT / "plugins" / "README.md").read_text("utf-8")
    tests = "".join(
        source.text for source in sources("tests") if source.path != "tests/test_project.py"
    )
    assert hooks
    assert [hook for hook in hooks if hook not in manual] == []
    assert [hook for hook in hooks if hook not in tests] == []


# Put together here, so that this file does not name them.
MACHINE_PATHS = re.compile(
    r"(?<![\w.\-])/(" + "|".join(["work", "farm", "tmp", "root", "home", "Users"]) + r")/"
    "|file:" + "///"
)


def test_no_tracked_file_names_a_place_on_a_machine():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert paths
    wrong = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in paths
        if path.is_file()
        for match in MACHINE_PATHS.finditer(path.read_text("utf-8", errors="replace"))
    ]
    assert wrong == []
    assert MACHINE_PATHS.search("open('/" + "home/me/x')")
    assert not MACHINE_PATHS.search("docs.example.org/" + "home/me")


def test_every_benchmark_has_its_result_and_every_result_its_benchmark():
    # Timing asks nothing: the others measure with it.
    questions = {
        Path(source.path).stem
        for source in sources("benchmarks")
        if "__main__" in source.text and not source.path.endswith("__main__.py")
    }
    results = {path.stem for path in (ROOT / "benchmarks" / "results").iterdir()}
    assert results == questions
