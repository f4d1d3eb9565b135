"""The plugins of the manual, installed as distributions of their own, found by entry points."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import venv
from collections import OrderedDict
from dataclasses import replace
from importlib.metadata import distributions, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import nn

from surgery.errors import ClaimConflictError, PluginError
from surgery.families.registry import Registry
from surgery.heads import find_heads
from surgery.testing import check_family

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "plugins" / "README.md"

ASK = """
import json, sys
from surgery.families.registry import default_registry

registry = default_registry()
answer = {
    "plugins": {p.name: [p.distribution, p.version] for p in registry.plugins},
    "disabled": registry.disabled,
    "failures": [str(failure.error) for failure in registry.failures],
    "imported": sorted({"torch", "tinynet"} & set(sys.modules)),
    "explained": registry.explain(),
}

import tinynet

claim = registry.find_claim(tinynet.TinyNet())
answer["claim"] = claim and [claim.family.name, claim.plugin, claim.class_name]
print(json.dumps(answer))
"""


SECTIONS = {
    "tinynet": ("tinynet.py", "surgery_tinynet.py", "pyproject.toml", "test_tinynet.py"),
    "tinyheads": ("tinyheads.py", "surgery_tinyheads.py", "pyproject.toml", "test_tinyheads.py"),
    "tinyresnet": ("tinyresnet.py", "surgery_tinyresnet.py", "pyproject.toml"),
    "tinydetector": ("tinydetector.py", "surgery_tinydetector.py", "pyproject.toml"),
}


def manual() -> dict[str, dict[str, str]]:
    """The files of each section: every fence whose first line is the name of a file."""
    found = {}
    for section in MANUAL.read_text("utf-8").split("\n## "):
        fences = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", section, re.S | re.M)
        if fences:
            found[fences[0][0].removesuffix(".py")] = dict(fences)
    assert {name: tuple(files) for name, files in found.items()} == SECTIONS
    return found


def written_in_the_manual(folder: Path, section: str) -> Path:
    for name, text in manual()[section].items():
        (folder / name).write_text(text, "utf-8")
    return folder


def installed(folder: Path, name: str, **plugins: str) -> None:
    """What pip leaves behind of a distribution: its name and its entry points."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    points = "".join(f"{plugin} = {value}\n" for plugin, value in plugins.items())
    (info / "entry_points.txt").write_text(f"[surgery]\n{points}", "utf-8")


def run(python: Path, folder: Path, code: str, **environ: str) -> str:
    """What a fresh process of an environment says in a folder."""
    done = subprocess.run(
        [python, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": "", **environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees our packages, with every section installed; its Python."""
    folder = tmp_path_factory.mktemp("environment")
    own_pip = importlib.util.find_spec("pip") is not None
    venv.create(folder, with_pip=not own_pip, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    seen = [ROOT, ROOT / "plugins", *(path for path in sys.path if path.endswith("-packages"))]
    (site / "host.pth").write_text("\n".join(map(str, seen)), "utf-8")

    projects = [written_in_the_manual(tmp_path_factory.mktemp(name), name) for name in SECTIONS]
    pip = (
        [sys.executable, "-m", "pip", "--python", str(python)] if own_pip else [python, "-m", "pip"]
    )
    # Without setuptools here, pip fetches it from the package registry.
    here = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    command = [
        *pip,
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        *here,
        *projects,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in SECTIONS:
        assert (site / f"surgery_{name}.py").exists()
        (known,) = distributions(name=f"surgery-{name}", path=[str(site)])
        assert known.requires == ["torch-surgery"]
    return python


def ask(python: Path, folder: Path, **environ: str) -> dict[str, object]:
    return json.loads(run(python, folder, ASK, **environ))


def test_an_installed_plugin_is_found_and_claims_its_models(environment: Path, tmp_path: Path):
    answer = ask(environment, tmp_path)
    assert answer["plugins"]["tinynet"] == ["surgery-tinynet", "1.0"]
    assert answer["failures"] == answer["imported"] == []
    assert answer["claim"] == ["tinynet", "tinynet", "tinynet.TinyNet"]
    assert "tinynet (surgery-tinynet 1.0)" in answer["explained"]


def test_an_installed_plugin_can_be_disabled(environment: Path, tmp_path: Path):
    answer = ask(environment, tmp_path, SURGERY_DISABLE_PLUGINS="surgery-tinynet")
    assert answer["disabled"] == ["tinynet"]
    assert answer["claim"] is None
    assert answer["failures"] == []


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("tinynet", "test_the_family_keeps_its_word"),
        ("tinyheads", "test_both_heads_are_rebuilt_train_and_come_back"),
    ],
)
def test_the_tests_of_the_manual_pass_where_it_is_installed(
    environment: Path, tmp_path: Path, section: str, name: str
):
    (tmp_path / f"test_{section}.py").write_text(manual()[section][f"test_{section}.py"], "utf-8")
    run(environment, tmp_path, f"import test_{section}; test_{section}.{name}()")


CLAIMS = """
import json, os, torch
import surgery
from torchvision.models import resnet18
from tinyresnet import TinyResNet
from surgery.families.registry import default_registry
from surgery.testing import check_family
from surgery_tinyresnet import FAMILY

with torch.device("meta"):
    models = (TinyResNet(), type("Child", (TinyResNet,), {})(), resnet18())
ours = os.environ["OURS"]
for names in ("", "tinyresnet", "surgery-tinyresnet", f"{ours}:resnet", "tinyresnet, resnet"):
    os.environ["SURGERY_DISABLE_PLUGINS"] = names
    default_registry.cache_clear()
    claims = [default_registry().claim(model) for model in models]
    print(json.dumps([claim and claim.name for claim in claims]))

del os.environ["SURGERY_DISABLE_PLUGINS"]
default_registry.cache_clear()
assert check_family(FAMILY) == ("tinyresnet",)
model = TinyResNet()
surgery.replace_head(model, 7)
print(model.fc[2].out_features)
"""


def test_a_claim_of_the_manual_on_a_subclass_beats_ours_until_it_is_disabled(
    environment: Path, tmp_path: Path
):
    points = [p for p in entry_points(group="surgery") if p.value == "surgery_plugins.resnet"]
    ours = points[0].dist.name if points else "ours"
    if not points:
        installed(tmp_path, ours, resnet="surgery_plugins.resnet")
    theirs = ["tinyresnet", "tinyresnet"]
    answers = run(environment, tmp_path, CLAIMS, OURS=ours).splitlines()
    assert [json.loads(line) for line in answers] == [
        [*theirs, "resnet"],
        ["resnet"] * 3,
        ["resnet"] * 3,
        [*theirs, None],
        [None] * 3,
        7,
    ]


DETECT = """
import surgery, torch
from surgery.errors import ArgumentError
from surgery.testing import check_family
from surgery_tinydetector import FAMILY
from tinydetector import TinyDetector

assert check_family(FAMILY) == ("tinydetector",)
model = TinyDetector()
old = model.boxes.weight.detach().clone()
outcome = surgery.replace_head(model, 7, keep={0: 0, 3: 9})
print(model.scores.out_features, model.boxes.out_features)
print(torch.equal(model.boxes.weight[12:16], old[36:40]))
print(sum("was not recorded" in note for note in outcome.plan.notes))
try:
    surgery.replace_head(model, classes=["cat", "dog"])
except ArgumentError as error:
    print(error.fix)
"""


def test_the_detector_of_the_manual_changes_both_layers(environment: Path, tmp_path: Path):
    assert run(environment, tmp_path, DETECT).splitlines() == [
        "7 28",
        "True",
        "1",
        "classes=['__background__', 'cat', 'dog']",
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("def surgery_families", "def surgery_familys", "did you mean 'surgery_families'?"),
        ("@hookimpl\n", "", "not marked as a hook"),
        ("return [FAMILY]", "return FAMILY", "a list or tuple of surgery.families.Family"),
        ("return [FAMILY]", "FAMILY", "returned nothing"),
        ("import Family,", "import Familly,", "ImportError"),
        ("    name=", "    title=", "title"),
        ('("tinynet.TinyNet",)', '"tinynet.TinyNet"', "classes=('tinynet.TinyNet',)"),
        ('"tinynet.TinyNet"', '"TinyNet"', "no qualified class name"),
        ('"tinynet.TinyNet"', '"tinynet.TinyNett"', "does not claim 'tinynet'"),
        ('"stem.in_channels"', '"stem.channels"', "stem.channels"),
        ('HeadClaim("classifier")', 'HeadClaim("classifer")', "classifer (main)"),
        ('HeadClaim("classifier")', 'HeadClaim("block2")', "block2"),
        ('HeadClaim("classifier")', '"classifier"', "a tuple of HeadClaim"),
        ('(("block1",), ("block2",))', '("block1", "block2")', "stages has a wrong type"),
        (
            '(("block1",), ("block2",))',
            '(("block2",), ("block1",))',
            "stages[1] runs before stages[0]",
        ),
        ('(("block1",), ("block2",))', '(("block1",),)', "block2"),
        ('("num_classes",)', '("n_classes",)', "n_classes"),
        (r'(r"^features', r'(r"(^features', "no valid rule"),
        ('"tinynet:TinyNet"', '"tinynet.TinyNet"', "leads to nothing that can be imported"),
        ('"tinynet:TinyNet"', '"tinynet:Tinynet"', "Tinynet"),
    ],
)
def test_a_mistake_in_following_the_manual_is_named(load, write, right: str, wrong: str, said: str):
    files = manual()["tinynet"]
    code = files["surgery_tinynet.py"]
    assert code.count(right) == 1
    write("tinynet", files["tinynet.py"])
    registry = load(mine=write("surgery_tinynet", code.replace(right, wrong)))
    for failure in registry.failures:
        assert failure.error.fix
        assert said in str(failure.error)
    if not registry.failures:
        (family,) = registry.families
        with pytest.raises(PluginError) as caught:
            check_family(family, registry=registry)
        assert caught.value.fix
        assert said in str(caught.value)


def test_two_plugins_of_the_manual_name_each_other(load, write):
    files = manual()["tinynet"]
    write("tinynet", files["tinynet.py"])
    first, second = (write(name, files["surgery_tinynet.py"]) for name in ("one", "two"))
    registry = load(first=first, second=second)
    with pytest.raises(ClaimConflictError) as caught:
        registry.claim(resolve_name("tinynet:TinyNet")())
    assert {"'first'", "'second'"} <= set(re.findall(r"'\w+'", str(caught.value)))
    assert "SURGERY_DISABLE_PLUGINS" in caught.value.fix
    assert load(first=first, second=second, disabled=("second",)).conflicts == ()


def test_the_word_on_models_without_classes_is_kept():
    fences = re.findall(r"^```python\n(.*?)^```$", MANUAL.read_text("utf-8"), re.S | re.M)
    (code,) = (fence for fence in fences if "def headless" in fence)
    told: dict[str, Any] = {}
    exec(code, told)
    registry = Registry.of(
        replace(told["FAMILY"], classes=("torch.nn.modules.container.Sequential",))
    )
    layers = {"body": nn.Linear(4, 6), "classifier": nn.Identity()}
    model = nn.Sequential(OrderedDict(layers))
    model.num_classes = 0
    assert not find_heads(model, torch.zeros(2, 4), registry=registry)
    model.classifier = nn.Linear(6, 3)
    (head,) = find_heads(model, torch.zeros(2, 4), registry=registry)
    assert (head.address, head.corroborated) == ("classifier", True)
