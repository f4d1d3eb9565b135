"""Broken checkpoints of several files, in the way of ``broken.py``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from surgery.errors import AmbiguousWeightsError
from tests.weights.broken import STATE, broken, written


def sharded(folder: Path, suffix: str = "safetensors") -> Path:
    """Two shards with one tensor each, and their index."""
    table = {}
    for number, (name, tensor) in enumerate(STATE.items(), 1):
        file = folder / f"model-{number:05}-of-{len(STATE):05}.{suffix}"
        if suffix == "safetensors":
            save_file({name: tensor}, file)
        else:
            torch.save({name: tensor}, file)
        table[name] = file.name
    return index(folder, {"metadata": {}, "weight_map": table})


def index(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    return written(folder / "model.safetensors.index.json", text.encode())


def weight_map(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(sharded(folder).read_text())["weight_map"]
    return found


@broken("1 of 2 shards is missing")
def missing_shard(folder: Path) -> Path:
    path = sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return path


@broken("a shard lacks a tensor that the index says it has")
def tensor_not_in_its_shard(folder: Path) -> Path:
    table = weight_map(folder)
    return index(folder, {"weight_map": {**table, "other": table["weight"]}})


@broken("the index cannot be read as JSON")
def index_is_no_json(folder: Path) -> Path:
    return index(folder, "weight_map")


@broken("the index has no weight_map")
def index_without_a_map(folder: Path) -> Path:
    return index(folder, {"metadata": {"total_size": 3}})


@broken("the index lists no tensor")
def index_of_nothing(folder: Path) -> Path:
    return index(folder, {"weight_map": {}})


@broken("a name stands twice in the index")
def index_with_a_name_twice(folder: Path) -> Path:
    return index(folder, '{"weight_map": {"a": "x", "a": "y"}}')


@broken("'a' lies outside the directory")
def index_that_leads_outside(folder: Path) -> Path:
    return index(folder, {"weight_map": {"a": "../secret.safetensors"}})


@broken("the file ends inside its header")
def last_shard_cut_short(folder: Path) -> Path:
    path = sharded(folder)
    last = folder / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[:20])
    return path


@broken("there is no checkpoint in this directory", AmbiguousWeightsError)
def directory_with_none(folder: Path) -> Path:
    written(folder / "config.json", b"{}")
    return folder


@broken("there are 2 checkpoints in this directory", AmbiguousWeightsError)
def directory_with_two(folder: Path) -> Path:
    save_file(STATE, folder / "model.safetensors")
    torch.save(STATE, folder / "pytorch_model.bin")
    return folder


@broken("these shards have no index that says what lies in which", AmbiguousWeightsError)
def directory_of_shards_alone(folder: Path) -> Path:
    sharded(folder).unlink()
    return folder


@broken("this is a distributed checkpoint, which is not read here", AmbiguousWeightsError)
def directory_of_a_distributed_checkpoint(folder: Path) -> Path:
    written(folder / "__0_0.distcp", b"")
    return folder
