"""Every hook is documented, and each is implemented once here for real."""

from __future__ import annotations

import ast
import inspect
import zipfile
from collections.abc import Mapping
from pathlib import Path

import click
import click.testing
import pluggy
import pytest
import torch
from torch import nn

import surgery
from surgery.errors import WrappedModelError
from surgery.families import Family, HeadKind, WeightReader, Wrapping, hookimpl, hookspecs
from surgery.families.registry import Registry

ROOT = Path(__file__).parents[2]


def contract() -> dict[str, object]:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return {name: getattr(hookspecs, name) for name in vars(manager.hook) if name[0] != "_"}


HOOKS = contract()


def gaps(name: str, function: object) -> list[str]:
    """What the documentation of a hook leaves out."""
    doc = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    wanted = ["Called ", "Example::", f"def {name}"]
    wanted += ["Returns:"] if "None" not in str(signature.return_annotation) else []
    wanted += ["Args:", *(f"{parameter}:" for parameter in signature.parameters)][
        : 1 + len(signature.parameters) if signature.parameters else 0
    ]
    found = [want for want in wanted if want not in doc]
    if "Example::" in doc:
        try:
            ast.parse(inspect.cleandoc(doc.partition("Example::")[2]))
        except SyntaxError:
            found.append("an example that is Python")
    return found


def test_there_are_these_hooks():
    assert set(HOOKS) == {
        "surgery_families",
        "surgery_head_kinds",
        "surgery_weight_readers",
        "surgery_wrappings",
        "surgery_commands",
    }


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_says_when_it_is_called_what_it_takes_and_what_it_returns(name: str):
    assert gaps(name, HOOKS[name]) == []
    assert f"`{name}(" in (ROOT / "plugins" / "README.md").read_text("utf-8")


def test_a_gap_in_the_documentation_is_noticed():
    def surgery_nothing(what) -> int:
        """Do nothing.

        Example::

            def surgery_nothing(:
        """

    assert gaps("surgery_nothing", surgery_nothing) == [
        "Called ",
        "Returns:",
        "Args:",
        "what:",
        "an example that is Python",
    ]


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_test_that_implements_it(name: str):
    implemented = {
        node.name
        for node in ast.walk(ast.parse(Path(__file__).read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(mark) == "hookimpl" for mark in node.decorator_list)
    }
    assert name in implemented


class Cosine(nn.Module):
    def __init__(self, in_features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = nn.functional.normalize(self.weight)
        return self.scale * nn.functional.normalize(x) @ weight.T


class WarmCosine(Cosine):
    pass


def rebuild_cosine(layer: nn.Module, num_classes: int) -> nn.Module:
    new = Cosine(layer.weight.shape[1], num_classes, layer.scale)
    return new.to(layer.weight.device, layer.weight.dtype)


def open_zip(path: Path) -> Mapping[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive:
        return {
            name: torch.frombuffer(bytearray(archive.read(name)), dtype=torch.float32)
            for name in archive.namelist()
        }


def why_checked(module: nn.Module, inside: str, filled: bool) -> str:
    return f"{inside} was checked"


class Plugin:
    """One plugin object with every hook."""

    @hookimpl
    def surgery_families(self):
        return [Family("cosine", (f"{__name__}.Cosine",))]

    @hookimpl
    def surgery_head_kinds(self):
        return (HeadKind("cosine", (f"{__name__}.Cosine",), rebuild=rebuild_cosine),)

    @hookimpl
    def surgery_weight_readers(self):
        return [WeightReader("zipped", (".zw",), sniff=zipfile.is_zipfile, open=open_zip)]

    @hookimpl
    def surgery_wrappings(self):
        return [Wrapping("checked", attribute="checked", refuses=why_checked, remedy="uncheck()")]

    @hookimpl
    def surgery_commands(self, cli):
        @cli.command()
        @click.argument("name")
        def greet(name: str) -> None:
            click.echo(f"hello {name}")


plugin = Plugin()


@pytest.fixture
def registry(load) -> Registry:
    registry = load(every=f"{__name__}:plugin")
    assert registry.failures == ()
    return registry


def test_surgery_families_registers_families(registry: Registry):
    assert registry.claim(Cosine(2, 3, 1.0)).name == "cosine"


def test_surgery_head_kinds_rebuilds_an_unusual_head_and_its_subclass(registry: Registry):
    for layer in (Cosine(4, 9, 16.0), WarmCosine(4, 9, 16.0).to(torch.float64)):
        new = registry.head_kind(layer).rebuild(layer, 5)
        assert (new.weight.shape, new.weight.dtype) == ((5, 4), layer.weight.dtype)
        assert new.scale == 16.0
        assert new(torch.ones(2, 4, dtype=layer.weight.dtype)).shape == (2, 5)
    assert registry.head_kind(nn.Linear(4, 9)) is None


def test_surgery_weight_readers_reads_a_format(registry: Registry, tmp_path: Path):
    weights = {"a": torch.arange(3.0), "b": torch.ones(2)}
    path = tmp_path / "model.ZW"
    with zipfile.ZipFile(path, "w") as archive:
        for name, tensor in weights.items():
            archive.writestr(name, tensor.numpy().tobytes())
    read = registry.weight_reader(path).open(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)

    (tmp_path / "no.zw").write_bytes(b"something else")
    assert registry.weight_reader(tmp_path / "no.zw") is None
    assert registry.weight_reader(path.rename(tmp_path / "model.zip")) is None


def test_surgery_wrappings_refuses_what_would_not_hold(registry: Registry):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].checked = True
    with pytest.raises(WrappedModelError, match="weight was checked"):
        surgery.replace_head(model, 5, heads="2", registry=registry)
    assert surgery.replace_head(model, 5, heads="2", registry=Registry.of()).checks


def test_surgery_commands_adds_a_command(registry: Registry):
    cli = click.Group()
    assert registry.add_commands(cli) == ()
    done = click.testing.CliRunner().invoke(cli, ["greet", "you"])
    assert (done.exit_code, done.output) == (0, "hello you\n")
