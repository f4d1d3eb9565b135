"""Several files behind one index, and which checkpoint a directory holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgery.errors import AmbiguousWeightsError, ChangedFileError, WeightsError
from surgery.weights import read
from tests.weights.broken import STATE, written
from tests.weights.broken_folders import index, sharded


@pytest.mark.parametrize(
    ("suffix", "kind"), [("safetensors", "sharded safetensors"), ("bin", "sharded pytorch zip")]
)
@pytest.mark.parametrize("mmap", [False, True])
def test_shards_are_one_source(suffix: str, kind: str, mmap: bool, tmp_path: Path):
    path = sharded(tmp_path, suffix)
    for source in path, str(path), tmp_path:
        weights = read(source, mmap=mmap)
        assert weights.format == kind
        assert list(weights.tensors) == list(STATE)
        found = dict(weights.read_many())
        assert all(torch.equal(found[name], STATE[name]) for name in STATE)
        assert torch.equal(weights.read("bias"), STATE["bias"])
        assert [name for name, _ in weights.read_many(["bias"])] == ["bias"]


def test_what_the_index_does_not_list_is_noted(tmp_path: Path):
    path = sharded(tmp_path)
    save_file({**STATE, "more": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    weights = read(path)
    assert list(weights.tensors) == list(STATE)
    assert weights.notes[1].endswith("left out: more, weight")


def test_a_shard_that_changed_is_refused(tmp_path: Path):
    weights = read(sharded(tmp_path))
    os.truncate(tmp_path / "model-00002-of-00002.safetensors", 20)
    assert torch.equal(weights.read("weight"), STATE["weight"])
    with pytest.raises(ChangedFileError) as caught:
        weights.read("bias")
    assert "00002-of" in caught.value.where


def test_shards_have_no_entries(tmp_path: Path):
    with pytest.raises(AmbiguousWeightsError, match="no entry 'ema'"):
        read(sharded(tmp_path), inside="ema")


def test_shards_may_lie_deeper_but_not_outside(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    save_file(STATE, tmp_path / "deep" / "x.safetensors")
    path = index(tmp_path, {"weight_map": dict.fromkeys(STATE, "deep/x.safetensors")})
    assert list(read(path).tensors) == sorted(STATE)
    for bad in ("/etc/passwd", "deep/../../x", "..\\x", "C:\\x", ""):
        with pytest.raises(WeightsError, match="lies outside"):
            read(index(tmp_path, {"weight_map": {"weight": bad}}))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "last.ckpt", "best.PTH", "checkpoint.pth.tar"]
)
def test_a_directory_with_one_checkpoint(name: str, tmp_path: Path):
    torch.save(STATE, tmp_path / name)
    written(tmp_path / "config.json", json.dumps({"num_labels": 3}).encode())
    written(tmp_path / "README.md", b"#")
    (tmp_path / "older").mkdir()
    torch.save(STATE, tmp_path / "older" / name)
    weights = read(tmp_path)
    assert weights.origin == str(tmp_path / name)
    assert list(weights.tensors) == list(STATE)


def test_state_of_training_beside_it_is_passed_over_and_noted(tmp_path: Path):
    save_file(STATE, tmp_path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        written(tmp_path / name, b"")
    (note,) = read(tmp_path).notes
    assert note == (
        "in the same directory: optimizer.pt, rng_state_0.pth, scheduler.pt, training_args.bin"
    )


def test_a_directory_with_two_lists_both_and_says_how_to_choose(tmp_path: Path):
    for name in ("a.pth", "b.pth"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(AmbiguousWeightsError) as caught:
        read(tmp_path)
    assert caught.value.found == "a.pth, b.pth"
    assert caught.value.fix == f"read({str(tmp_path / 'a.pth')!r})"
    assert list(eval(caught.value.fix, {"read": read}).tensors) == list(STATE)
