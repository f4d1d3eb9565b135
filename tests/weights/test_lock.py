"""Files that processes leave behind: removed when they are gone, left alone while they live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.errors import WeightsError
from surgery.weights import destination
from surgery.weights.destination import check_destination, placed
from surgery.weights.lock import locked

ROOT = Path(__file__).parents[2]
# Begins a file, says so, and waits to be ended.
WRITER = """
import sys, time
from pathlib import Path
from surgery.weights.destination import placed
with placed(Path(sys.argv[1]), overwrite=True) as file:
    file.write(b"half")
    file.flush()
    print("begun", flush=True)
    sys.stdin.readline()
"""


def begun(target: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def write(target: Path, content: bytes = b"new") -> None:
    with placed(target, overwrite=True) as file:
        file.write(content)


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.part"))


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path):
    target = tmp_path / "a.bin"
    with begun(target) as process:
        (left,) = parts(tmp_path)
        write(target)
        assert parts(tmp_path) == [left], "its process lives"
        process.send_signal(signal.SIGKILL)
    assert parts(tmp_path) == [left]
    write(tmp_path / "b.bin")
    assert parts(tmp_path) == [left], "of another destination"
    write(target, b"newer")
    assert parts(tmp_path) == []
    assert target.read_bytes() == b"newer"


def test_a_process_that_lives_gets_its_file_into_place(tmp_path: Path):
    target = tmp_path / "a.bin"
    with begun(target) as process:
        write(target)
        process.communicate("go on\n")
    assert process.returncode == 0
    assert target.read_bytes() == b"half"
    assert parts(tmp_path) == []


def test_two_writers_in_one_process_leave_each_other_alone(tmp_path: Path):
    target = tmp_path / "a.bin"
    with placed(target, overwrite=True) as outer:
        outer.write(b"outer")
        write(target, b"inner")
        assert target.read_bytes() == b"inner"
    assert target.read_bytes() == b"outer"


@pytest.mark.parametrize(
    "name",
    [
        "a.bin.part",
        "a.bin.12345678.part",
        "a.bin.surgery-1234567.part",
        "xa.bin.surgery-12345678.part",
    ],
)
def test_names_that_are_not_ours_are_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"somebody's")
    write(tmp_path / "a.bin")
    assert parts(tmp_path) == [name]


def test_what_is_no_file_is_left_alone(tmp_path: Path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"kept")
    (tmp_path / "a.bin.surgery-00000000.part").symlink_to(mine)
    (tmp_path / "a.bin.surgery-11111111.part").mkdir()
    write(tmp_path / "a.bin")
    assert len(parts(tmp_path)) == 2
    assert mine.read_bytes() == b"kept"


def test_a_file_that_was_taken_for_a_left_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    met: list[int] = []

    def late(handle: int) -> bool | None:
        # The first file is swept away between its making and its locking.
        if not met:
            (part,) = tmp_path.glob("*.part")
            part.unlink()
        met.append(handle)
        return locked(handle)

    monkeypatch.setattr(destination, "locked", late)
    write(tmp_path / "a.bin")
    assert len(met) == 2
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert parts(tmp_path) == []


def test_a_disk_without_locks_is_written_to_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    left = tmp_path / "a.bin.surgery-00000000.part"
    left.write_bytes(b"perhaps alive")
    monkeypatch.setattr(destination, "locked", lambda handle: None)
    write(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert parts(tmp_path) == [left.name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_is_no_destination_and_nobody_is_told_to_overwrite_it(overwrite: bool):
    with pytest.raises(WeightsError) as caught:
        check_destination(os.devnull, overwrite)
    assert "overwrite" not in str(caught.value)
