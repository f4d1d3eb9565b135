"""``surgery new-plugin`` writes a project that installs, tests itself and is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from surgery.cli.main import cli
from surgery.cli.project import named, write_project
from surgery.errors import ArgumentError, PlanError
from surgery.families import Family
from surgery.families.registry import Plugin, Registry

ROOT = Path(__file__).parents[2]
NONE = Registry.of()
FILES = {
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "src/surgery_tiny_net.py",
    "src/wee.py",
    "tests/test_surgery_tiny_net.py",
}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["new-plugin", *map(str, words)], obj=NONE)
    written = capsys.readouterr()
    return ended.value.code, written.out, written.err


def files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects")
    return write_project(named("tiny-net", "wee.TinyNet", NONE), folder)


def environment(project: Path) -> dict[str, str]:
    """Variables under which a fresh process has the project as if pip had installed it."""
    facts = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    name, version = facts["name"], facts["version"]
    site = project.parent / "site"
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8"
    )
    points = facts["entry-points"]["surgery"].items()
    (info / "entry_points.txt").write_text(
        "[surgery]\n" + "".join(f"{name} = {value}\n" for name, value in points), "utf-8"
    )
    paths = [project / "src", site, ROOT, ROOT / "plugins"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def fresh(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_own_tests_pass_where_it_is_installed(project: Path):
    done = fresh(project, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_surgery_shows_it(project: Path):
    run = "from surgery.cli.main import main; main()"
    done = fresh(project, "-c", run, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    installed = {row["name"]: row for row in data["plugins"]}
    assert installed["tiny_net"]["distribution"] == "surgery-tiny-net"
    claims = [row for row in data["claims"] if row["plugin"] == "tiny_net"]
    assert [row["claims"] for row in claims] == [["wee.TinyNet"]]
    assert not [row for row in data["failures"] if row["plugin"] == "tiny_net"]


def test_the_modules_of_the_project_are_those_it_installs(project: Path):
    settings = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    modules = settings["tool"]["setuptools"]["py-modules"]
    assert {f"src/{name}.py" for name in modules} == {
        name for name in files_in(project) if name.startswith("src/") and "__pycache__" not in name
    }
    assert "license" not in settings["project"]


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]], ids=" ".join)
@pytest.mark.parametrize("model", ["wee.TinyNet", "alpha.TinyNet"])
def test_it_keeps_our_own_rules(tmp_path: Path, check: list[str], model: str):
    folder = write_project(named("tiny-net", model, NONE), tmp_path)
    ruff = [sys.executable, "-m", "ruff", *check, "--no-cache", "--config", ROOT / "pyproject.toml"]
    done = subprocess.run([*ruff, "."], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_command_says_what_it_wrote_and_what_to_do(tmp_path: Path, capsys):
    words = ("surgery-Tiny.Net", "--directory", tmp_path, "--class", "wee.TinyNet")
    status, out, err = run(capsys, *words)
    folder = tmp_path / "surgery-tiny-net"
    assert (status, err) == (0, "")
    assert files_in(folder).keys() == FILES
    assert all(name in out for name in FILES)
    assert f"pip install -e '{folder}[dev]'" in out


def test_json_lists_the_files(tmp_path: Path, capsys):
    words = ("tiny_net", "--directory", tmp_path, "--class", "wee.TinyNet", "--json")
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert set(json.loads(out)["files"]) == FILES == {*files_in(tmp_path / "surgery-tiny-net")}


def test_nothing_is_overwritten(tmp_path: Path, capsys):
    words = ("tiny-net", "--directory", tmp_path)
    assert run(capsys, *words)[0] == 0
    marked = tmp_path / "surgery-tiny-net" / "README.md"
    marked.write_text("mine", "utf-8")
    before = files_in(tmp_path)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert "nothing is overwritten" in err
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("broken", range(6))
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch, broken: int):
    write, calls = Path.write_text, []

    def failing(path: Path, *args: object, **options: object) -> int:
        calls.append(path)
        if len(calls) == broken + 1:
            raise OSError(28, "No space left on device")
        return write(path, *args, **options)

    project = named("tiny-net", None, NONE)
    monkeypatch.setattr(Path, "write_text", failing)
    with pytest.raises(PlanError, match="nothing was") as caught:
        write_project(project, tmp_path)
    assert caught.value.found == "No space left on device"
    assert list(tmp_path.iterdir()) == []
    assert len(calls) == broken + 1


def test_the_name_decides_the_class():
    project = named("tiny-net", None, NONE)
    assert project.module_class == "tiny_net.TinyNet"
    assert named("surgery-tiny-net", None, NONE) == project == named("Tiny_Net", None, NONE)


TAKEN = Registry([Plugin("wee", families=(Family("weenet", ("wee.WeeNet",)),))])


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("", None, "cannot be called"),
        ("../up", None, "cannot be called"),
        ("tiny net", None, "cannot be called"),
        ("-tiny", None, "cannot be called"),
        ("2tiny", None, "cannot be called"),
        ("class", None, "cannot be called"),
        ("surgery", None, "cannot be called"),
        ("tïny", None, "cannot be called"),
        ("tiny\n", None, "cannot be called"),
        ("json", None, "whose name is taken"),
        ("torch", None, "whose name is taken"),
        ("plugins", None, "whose name is taken"),
        ("tiny-net", "json.TinyNet", "whose name is taken"),
        ("tiny-net", "surgery_tiny_net.TinyNet", "whose name is taken"),
        ("tiny-net", "TinyNet", "no class of a module"),
        ("tiny-net", "wee.a.TinyNet", "no class of a module"),
        ("tiny-net", "wee.Tiny'Net", "no class of a module"),
        ("tiny-net", "wee.class", "no class of a module"),
        ("wee", None, "has this name"),
        ("weenet", None, "has this name"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(name, model, said):
    with pytest.raises(ArgumentError, match=said) as caught:
        named(name, model, TAKEN)
    assert caught.value.fix


def test_a_directory_that_is_not_there_is_named(tmp_path: Path, capsys):
    status, _, err = run(capsys, "tiny-net", "--directory", tmp_path / "none")
    assert status == 2
    assert "there is no such directory" in err
