"""Files are written whole or not at all, and are those that the format's own library reads."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from surgery.errors import ArgumentError, SurgeryError, WeightsError
from surgery.weights import read
from surgery.weights.safetensors_files import DTYPES
from surgery.weights.write import write

# The library's own torch side lags behind torch in these.
_SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
_TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.tuples(_SHAPES, st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16])),
    max_size=5,
)


@given(
    _TENSORS, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text("aé\n"))
)
def test_both_readers_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    forms: dict[str, tuple[tuple[int, ...], torch.dtype]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("written") / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 9, shape, generator=generator).to(dtype)
        for name, (shape, dtype) in forms.items()
    }
    write(path, tensors, metadata)
    theirs = load_file(path)
    ours = dict(read(path).read_many()) if tensors else {}
    for name, tensor in tensors.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
    assert theirs.keys() == tensors.keys()
    with safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata


@pytest.mark.parametrize("dtype", sorted(DTYPES.values(), key=str), ids=str)
def test_every_dtype_keeps_its_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2, (16,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensor = raw.view(dtype)
    path = write(tmp_path / "a.safetensors", {"w": tensor}, {})
    found = read(path).read("w")
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), raw)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.ones(1).expand(5),
        torch.view_as_complex(torch.arange(8.0).view(4, 2)).conj(),
        torch.zeros(0, 3),
        torch.tensor(3.5),
    ],
    ids=["transposed", "strided", "expanded", "conjugate", "empty", "scalar"],
)
def test_tensors_of_any_layout_are_written_in_order(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = write(tmp_path / "a.safetensors", {"w": tensor, "v": torch.ones(3)}, {})
    assert torch.equal(read(path).read("w"), tensor)


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    metadata = {str(number): "x" for number in range(20)}
    tensors = {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int64)}
    one = write(tmp_path / "1", tensors, metadata).read_bytes()
    other = write(tmp_path / "2", dict(reversed(tensors.items())), metadata).read_bytes()
    assert one == other


def _refused(
    tmp_path: Path, error: type[SurgeryError], match: str, path: object, **options: Any
) -> None:
    before = {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}
    with pytest.raises(error, match=match) as caught:
        write(path, options.pop("tensors", {"w": torch.ones(2)}), options.pop("metadata", {}))
    assert caught.value.fix
    assert before == {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    new = tmp_path / "new"
    _refused(tmp_path, WeightsError, "file already", tmp_path / "there")
    _refused(tmp_path, WeightsError, "a directory", tmp_path / "folder")
    _refused(tmp_path, WeightsError, "no such directory", tmp_path / "nowhere" / "a")
    _refused(tmp_path, WeightsError, "no such directory", tmp_path / "there" / "a")
    _refused(tmp_path, ArgumentError, "no path", 3)
    _refused(tmp_path, ArgumentError, "no path", "a\0b")
    _refused(tmp_path, ArgumentError, "cannot hold", new, tensors={"w": torch.ones(2).to("meta")})
    sparse = torch.ones(2, 2).to_sparse()
    _refused(tmp_path, ArgumentError, "cannot hold", new, tensors={"w": sparse})
    _refused(tmp_path, ArgumentError, "name", new, tensors={"__metadata__": torch.ones(1)})
    _refused(tmp_path, ArgumentError, "texts", new, metadata={"epoch": 3})
    _refused(tmp_path, WeightsError, "too long", new, metadata={"x": "y" * 100_000_001})
    with pytest.raises(WeightsError, match="no file that could be replaced"):
        write(tmp_path / "pipe", {}, {}, overwrite=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"w": torch.ones(2)}, {})
    before = path.read_bytes()
    opened = os.open
    monkeypatch.setattr(os, "open", lambda file, *rest: opened("/dev/full", os.O_WRONLY))
    with pytest.raises(WeightsError, match="cannot be written") as caught:
        write(path, {"w": torch.zeros(9999)}, {}, overwrite=True)
    assert "space" in str(caught.value.found)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WeightsError, match="cannot be written"):
        write(tmp_path / "a", {}, {})


def test_a_link_keeps_leading_to_the_file_and_the_file_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "real", tmp_path / "link"
    write(target, {"w": torch.ones(2)}, {})
    target.chmod(0o640)
    link.symlink_to(target)
    write(link, {"w": torch.zeros(2)}, {}, overwrite=True)
    assert link.is_symlink()
    assert torch.equal(read(target).read("w"), torch.zeros(2))
    assert target.stat().st_mode & 0o777 == 0o640


def test_an_exception_on_the_way_leaves_the_old_file_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write(tmp_path / "a", {"w": torch.ones(2)}, {})
    before = path.read_bytes()

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, {"w": torch.zeros(2)}, {}, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


_WRITER = """
import sys, torch
from surgery.weights.write import write
number = 1
print("ready", flush=True)
while True:
    write(sys.argv[1], {str(i): torch.full((50_000,), number) for i in range(8)},
          {"number": str(number)}, overwrite=True)
    number += 1
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """Killed again and again while it overwrites one file: what is there is of one writing."""
    path = tmp_path / "model.safetensors"
    write(path, {str(i): torch.full((50_000,), 0) for i in range(8)}, {"number": "0"})
    moments = random.Random(0)
    written = set()
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            for _ in range(6):
                # Stopped, it is as a kill would leave it at that moment.
                time.sleep(moments.uniform(0.0, 0.05))
                writer.send_signal(signal.SIGSTOP)
                weights = read(path)
                number = int(weights.metadata["number"])
                tensors = list(weights.read_many())
                assert all(bool((tensor == number).all()) for _, tensor in tensors)
                assert len(tensors) == 8
                written.add(number)
                writer.send_signal(signal.SIGCONT)
            time.sleep(moments.uniform(0.0, 0.05))
        finally:
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        number = int(read(path).metadata["number"])
        assert all(bool((tensor == number).all()) for _, tensor in read(path).read_many())
    assert len(written) > 1, "nothing was overwritten meanwhile, so nothing was shown"
    assert all(p == path or p.suffix == ".part" for p in tmp_path.iterdir())


def test_the_header_begins_the_data_at_a_multiple_of_eight(tmp_path: Path) -> None:
    tensors = {"wide": torch.ones(3, dtype=torch.float64), "narrow": torch.ones(3).bool()}
    raw = write(tmp_path / "a", tensors, {"x": "y"}).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header["wide"]["data_offsets"] == [0, 24]
