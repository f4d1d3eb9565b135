"""The plugin of the manual, installed as a distribution of its own and found by its entry point."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

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


def written_in_the_manual(folder: Path) -> None:
    """The files of the manual: every fence whose first line is the name of a file."""
    fences = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", MANUAL.read_text("utf-8"), re.S | re.M)
    assert [name for name, _ in fences] == [
        "tinynet.py",
        "surgery_tinynet.py",
        "pyproject.toml",
        "test_tinynet.py",
    ]
    for name, text in fences:
        (folder / name).write_text(text, "utf-8")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees our packages, with the distribution installed; its Python."""
    folder = tmp_path_factory.mktemp("environment")
    own_pip = importlib.util.find_spec("pip") is not None
    venv.create(folder, with_pip=not own_pip, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    seen = [ROOT, ROOT / "plugins", *(path for path in sys.path if path.endswith("-packages"))]
    (site / "host.pth").write_text("\n".join(map(str, seen)), "utf-8")

    project = tmp_path_factory.mktemp("surgery-tinynet")
    written_in_the_manual(project)
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
        project,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (site / "surgery_tinynet.py").exists()
    return python


def ask(python: Path, folder: Path, **environ: str) -> dict[str, object]:
    done = subprocess.run(
        [python, "-W", "error", "-c", ASK],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": "", **environ},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


def test_the_contract_test_of_the_manual_passes_where_it_is_installed(
    environment: Path, tmp_path: Path
):
    written_in_the_manual(tmp_path)
    test = tmp_path / "test_tinynet.py"
    for other in tmp_path.iterdir():
        if other != test:
            other.unlink()
    code = "import test_tinynet; test_tinynet.test_the_family_keeps_its_word()"
    done = subprocess.run(
        [environment, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
