"""Every textbook case runs by its name, and ``seeds`` stands for all of them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as runner

MANUAL = Path(runner.__file__).parent / "README.md"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that were started."""
    started: list[str] = []

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        started.append(command[-1])
        return SimpleNamespace(returncode=command[-1].endswith("audit"))

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_seeds_are_all_of_them_and_nothing_else(ran: list[str]):
    assert runner.main(["seeds"]) == 0
    assert ran == [f"benchmarks.seeds.{name}" for name in runner.SEEDS]
    assert {"vgg16_transplant", "finetuning", "resnet_blocks"} <= set(runner.SEEDS)
    assert not {"page", "dog_breeds"} & set(runner.SEEDS)


def test_without_a_name_every_question_is_asked(ran: list[str]):
    assert runner.main([]) == 1, "one of them fails"
    assert ran == [f"benchmarks.{name}" for name in runner.QUESTIONS]
    assert "audit" in runner.QUESTIONS
    assert "timing" not in runner.QUESTIONS


def test_an_unknown_name_starts_nothing(ran: list[str], capsys: pytest.CaptureFixture[str]):
    assert runner.main(["finetuning", "finetunning"]) == 2
    assert not ran
    assert "finetunning" in capsys.readouterr().out


def test_the_manual_lists_every_script():
    manual = MANUAL.read_text("utf-8")
    assert [name for name in runner.SEEDS if f"| `{name}.py` |" not in manual] == []
