"""``surgery apply``: exit statuses, and files that are old or new whenever the process ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import surgery as door
from surgery.cli import running
from surgery.weights import read
from tests.cli.writing import SMALL, parts
from tests.recipes.models import ROOT, small

RECIPE = f"target: {SMALL}\nsteps:\n- replace_head: {{num_classes: 3}}\n"

# Where the process is killed: before or after one of the calls that bring a file to its place.
MOMENTS = {
    "before the model is built": "surgery.operations.build.construct",
    "before the new head": "surgery.recipes.runner._Work._expect",
    "before the file is made": "surgery.weights.write._header",
    "before the first tensor": "surgery.weights.write._bytes",
    "before the disk has it": "os.fsync",
    "before it is renamed": "pathlib.Path.replace",
    "after it is renamed": "pathlib.Path.replace",
}
KILLER = """
import os, pkgutil, signal, sys
moment, called = sys.argv[1:3]
module, _, name = called.rpartition(".")
owner = pkgutil.resolve_name(module)
real = getattr(owner, name)

def deadly(*arguments, **keywords):
    if moment.startswith("after"):
        real(*arguments, **keywords)
    os.kill(os.getpid(), signal.SIGKILL)

if moment != "never":
    setattr(owner, name, deadly)
from surgery.cli.main import cli
from surgery.families.registry import Registry
cli.main(sys.argv[3:], obj=Registry.of())
"""


def killed(moment: str, called: str, *words: str, folder: Path) -> int:
    """Run the command in a process that is killed at a moment; how it ended."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", KILLER, moment, called, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    return done.returncode


# Each costs two processes' start: the others run with the slow tests.
QUICK = {"before the disk has it", "after it is renamed"}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow, id=m) for m in MOMENTS],
)
def test_a_kill_leaves_the_old_file_or_the_new_one(surgery, tmp_path, moment):
    (tmp_path / "r.yaml").write_text(f"{RECIPE}- expect: parameters > 3\noutput: out.safetensors\n")
    old = door.save(small(), tmp_path / "out.safetensors").path.read_bytes()
    status = killed(moment, MOMENTS[moment], "apply", "r.yaml", "--overwrite", folder=tmp_path)
    assert status == -signal.SIGKILL
    found = (tmp_path / "out.safetensors").read_bytes()
    if moment == "after it is renamed":
        assert found != old
        assert door.restore(small, tmp_path / "out.safetensors").model[5].out_features == 3
    else:
        assert found == old
    left = [name for name in parts(tmp_path) if name not in ("r.yaml", "out.safetensors")]
    assert all(name.endswith(".part") for name in left)
    result = surgery("apply", "r.yaml", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert parts(tmp_path) == ["out.safetensors", "r.yaml"], "what was left is swept up"
    assert read("out.safetensors").tensors["5.weight"].shape == (3, 8)
    assert door.restore(small, tmp_path / "out.safetensors").model[5].out_features == 3


def test_a_process_that_nobody_kills_ends_well(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert killed("never", "os.fsync", "apply", "r.yaml", "--dry-run", folder=tmp_path) == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_long_work_where_somebody_looks(monkeypatch):
    with running.progress() as told:
        assert told is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    with running.progress() as told:
        told("load \x1b[2J", 1, 4)
    assert "1/4" in sys.stderr.getvalue()
    assert "load \\x1b[2J" in sys.stderr.getvalue()


def test_what_is_expected_and_does_not_hold_ends_with_1(surgery, tmp_path):
    (tmp_path / "r.yaml").write_text(f"{RECIPE}- expect: num_classes == 4\n")
    result = surgery("apply", "r.yaml", "-o", "out.safetensors")
    assert result.exit_code == 1
    assert "r.yaml:4:11" in result.stderr
    assert "num_classes is 3" in result.stderr
    assert "num_classes == 4" in result.stderr
    assert parts(tmp_path) == ["r.yaml"]
    said = json.loads(surgery("apply", "r.yaml", "--dry-run", "--json").stderr)
    assert (said["error"], said["found"]) == ("ExpectationError", "num_classes is 3")


def test_what_is_wrong_in_it_ends_with_2_before_anything_runs(surgery, tmp_path):
    (tmp_path / "r.yaml").write_text("target: tests.cli.no_such_module:x\nsteps:\n- freese: {}\n")
    result = surgery("apply", "r.yaml", "-o", "out.safetensors")
    assert result.exit_code == 2
    assert "r.yaml:3:3" in result.stderr
    assert "freeze" in result.stderr
    assert "no_such_module" not in result.stderr


def test_names_in_a_recipe_steer_no_terminal(surgery, tmp_path):
    (tmp_path / "r.yaml").write_text('target: "\\e[2J"\nsteps:\n- "\\e[2J": {}\n')
    result = surgery("apply", "r.yaml", "-o", "out.safetensors")
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr


def test_o_goes_before_the_output_of_the_recipe_and_one_of_them_is_needed(surgery, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    none = surgery("apply", "r.yaml")
    assert none.exit_code == 2
    assert "-o FILE" in none.stderr
    (tmp_path / "r.yaml").write_text(f"{RECIPE}output: a.safetensors\n")
    assert surgery("apply", "r.yaml", "-o", "b.safetensors").exit_code == 0
    assert parts(tmp_path) == ["b.safetensors", "r.yaml"]


def test_a_target_is_looked_for_where_the_command_is_called(surgery, tmp_path):
    (tmp_path / "mine_for_apply.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(3, 2)\n"
    )
    (tmp_path / "r.yaml").write_text("target: mine_for_apply:make\nexpect: parameters == 8\n")
    result = surgery("apply", "r.yaml", "-o", "out.safetensors")
    assert result.exit_code == 0, result.stderr
