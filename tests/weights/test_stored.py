"""What was saved comes back byte for byte, in every format; what changed meanwhile is refused."""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import nn

from surgery.errors import AddressError, ChangedFileError, WeightsError
from surgery.weights import Weights, filling, read, stored
from tests.weights.broken import repacked

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.bool, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu),
]
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["layer.0.weight", "fc.bias", "ключ.вес", "a/b", "..", "__metadata", "data.pkl"]
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any dtype: a number, empty, a matrix, transposed, every second one, or expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = max(1, int(torch.Size(shape).numel())) * dtype.itemsize * 2
    raw = draw(st.binary(min_size=count, max_size=count))
    if dtype == torch.bool:
        raw = bytes(byte % 2 for byte in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype)
    whole = flat[: torch.Size(shape).numel()].reshape(shape)
    form = draw(st.sampled_from(["plain", "transposed", "strided", "offset", "expanded"]))
    if form == "transposed" and len(shape) > 1:
        return whole.transpose(0, -1)
    if form == "strided":
        return flat[::2]
    if form == "offset":
        return flat[1:]
    if form == "expanded":
        return flat[:1].expand(3)
    return whole


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    state = draw(st.dictionaries(names, tensors(), min_size=1, max_size=5))
    if draw(st.booleans()):
        state["tied"] = next(iter(state.values()))
    return state


def as_zip(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)


def as_legacy(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def as_safetensors(state: dict[str, torch.Tensor], path: Path) -> None:
    whole = torch.contiguous_format
    save_file({name: each.clone(memory_format=whole) for name, each in state.items()}, path)


SAVE: dict[str, Callable[[Any, Path], None]] = {
    "pytorch zip": as_zip,
    "pytorch legacy": as_legacy,
    "safetensors": as_safetensors,
}


def content(tensor: torch.Tensor) -> bytes:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def same(found: torch.Tensor, saved: torch.Tensor) -> bool:
    return (
        found.shape == saved.shape
        and found.dtype == saved.dtype
        and content(found) == content(saved)
    )


@pytest.mark.parametrize("kind", [*SAVE, "dict"])
@pytest.mark.parametrize("mmap", [False, True], ids=["copied", "mapped"])
@given(state=states())
def test_what_was_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, mmap: bool, state: dict[str, torch.Tensor]
):
    source: Any = state
    if kind in SAVE:
        source = tmp_path_factory.getbasetemp() / f"{kind}-{mmap}"
        SAVE[kind](state, source)
    weights = read(source, mmap=mmap)
    assert weights.format == kind
    assert set(weights.tensors) == set(state)
    if kind != "safetensors":
        assert list(weights.tensors) == list(state)
    many = dict(weights.read_many())
    for name, saved in state.items():
        info = weights.tensors[name]
        assert (info.shape, info.dtype) == (tuple(saved.shape), saved.dtype)
        assert info.nbytes == saved.numel() * saved.element_size()
        assert same(weights.read(name), saved)
        assert same(many[name], saved)
    assert set(many) == set(state)
    if kind != "safetensors" and "tied" in state and state["tied"].numel():
        first = next(iter(state))
        assert first in weights.tensors["tied"].aliases
        assert "tied" in weights.tensors[first].aliases
        assert many[first] is many["tied"]


@pytest.mark.parametrize("kind", SAVE)
def test_dense_strides_are_kept_and_others_are_not(kind: str, tmp_path: Path):
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    path = tmp_path / "x"
    SAVE[kind]({"image": image, "column": torch.arange(6.0).reshape(2, 3)[:, 1]}, path)
    weights = read(path)
    if kind != "safetensors":
        assert weights.read("image").stride() == image.stride()
    assert weights.read("column").stride() == (1,)
    assert weights.read("column").untyped_storage().nbytes() == 8


def test_parts_of_one_storage_are_no_aliases(tmp_path: Path):
    whole = torch.arange(4.0)
    state = {"first": whole[:2], "second": whole[2:], "again": whole[:2]}
    path = tmp_path / "x.pth"
    torch.save(state, path)
    for weights in read(path), read(state):
        assert weights.tensors["first"].aliases == ("again",)
        assert weights.tensors["second"].aliases == ()
        assert weights.nbytes == 16


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("mmap", [False, True], ids=["copied", "mapped"])
def test_writing_to_what_was_read_changes_nothing_else(kind: str, mmap: bool, tmp_path: Path):
    path = tmp_path / "x"
    SAVE[kind]({"a": torch.zeros(1000), "b": torch.zeros(2)}, path)
    before = path.read_bytes()
    weights = read(path, mmap=mmap)
    weights.read("a").fill_(7)
    dict(weights.read_many())["b"].fill_(7)
    assert path.read_bytes() == before
    if not mmap:
        assert weights.read("a").count_nonzero() == 0


@pytest.mark.parametrize("kind", ["pytorch zip", "safetensors"])
def test_a_mapped_tensor_is_mapped_and_a_copied_one_is_not(kind: str, tmp_path: Path):
    path = tmp_path / "x"
    SAVE[kind]({"a": torch.zeros(1000)}, path)

    def mapped(tensor: torch.Tensor) -> bool:
        address = tensor.data_ptr()
        spans = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
        return any(
            span[-1] == str(path)
            and int(span[0].split("-")[0], 16) <= address < int(span[0].split("-")[1], 16)
            for span in spans
        )

    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not say what is mapped")
    assert mapped(read(path, mmap=True).read("a"))
    assert not mapped(read(path).read("a"))


@pytest.mark.parametrize("under", [torch.inference_mode, lambda: torch.device("meta")])
def test_what_is_read_can_be_trained_wherever_it_was_read(under: Any, tmp_path: Path):
    as_safetensors({"a": torch.ones(2)}, tmp_path / "x")
    with under():
        tensor = read(tmp_path / "x").read("a")
    (tensor.requires_grad_() * 2).sum().backward()
    assert tensor.grad.tolist() == [2.0, 2.0]


def in_place(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("mmap", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("change", [in_place, shorter, replaced, removed])
def test_a_file_that_changed_is_refused(
    change: Callable[[Path], None], mmap: bool, kind: str, tmp_path: Path
):
    path = tmp_path / "x"
    SAVE[kind]({"a": torch.zeros(4), "b": torch.zeros(4)}, path)
    weights = read(path, mmap=mmap)
    change(path)
    with pytest.raises(ChangedFileError):
        weights.read("a")
    with pytest.raises(ChangedFileError):
        next(weights.read_many())


@pytest.mark.parametrize("change", [in_place, shorter])
def test_a_file_that_changes_while_it_is_read_is_refused(
    change: Callable[[Path], None], tmp_path: Path
):
    path = tmp_path / "x"
    as_zip({"a": torch.zeros(4), "b": torch.zeros(4)}, path)
    reading = read(path).read_many()
    next(reading)
    change(path)
    with pytest.raises(ChangedFileError):
        next(reading)


def test_an_unknown_name_lists_the_closest(tmp_path: Path):
    weights = read({"layer1.weight": torch.ones(1)})
    with pytest.raises(AddressError, match=r"no tensor 'layer\.weight'") as caught:
        weights.read("layer.weight")
    assert caught.value.expected == "'layer1.weight'"
    with pytest.raises(AddressError):
        weights.read_many(["layer1.weight", "other"])


def test_many_come_in_the_order_of_the_file_whatever_was_asked(tmp_path: Path):
    state = {name: torch.zeros(3) for name in "cab"}
    as_zip(state, tmp_path / "x")
    weights = read(tmp_path / "x")
    assert [name for name, _ in weights.read_many(["b", "c"])] == ["c", "b"]


def swapped(path: Path) -> Path:
    """As a machine writes it that puts the last byte first."""

    def swap(records: dict[str, bytes]) -> None:
        floats = struct.iter_unpack("<f", records["data/0"])
        records["data/0"] = b"".join(struct.pack(">f", *number) for number in floats)
        shorts = struct.iter_unpack("<ff", records["data/1"])
        records["data/1"] = b"".join(struct.pack(">ff", *number) for number in shorts)
        records["byteorder"] = b"big"

    return repacked(path, swap)


@pytest.mark.parametrize("mmap", [False, True])
def test_bytes_of_the_other_order_are_turned(mmap: bool, tmp_path: Path):
    state = {"real": torch.tensor([1.5, -2.0]), "complex": torch.tensor([1 + 2j])}
    as_zip(state, tmp_path / "x")
    found = dict(read(swapped(tmp_path / "x"), mmap=mmap).read_many())
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_names_that_safetensors_only_mentions_are_aliases(tmp_path: Path):
    model = nn.ModuleDict(
        {"embed": nn.Linear(2, 3, bias=False), "head": nn.Linear(2, 3, bias=False)}
    )
    model["head"].weight = model["embed"].weight
    save_model(model, str(tmp_path / "x.safetensors"))
    weights = read(tmp_path / "x.safetensors")
    ((kept, info),) = weights.tensors.items()
    assert {kept, *info.aliases} == {"embed.weight", "head.weight"}
    assert torch.equal(weights.read(info.aliases[0]), model["embed"].weight)


def special(folder: Path) -> Weights:
    state = OrderedDict(
        plain=torch.ones(2),
        coordinates=torch.eye(3).to_sparse(),
        rows=torch.eye(3).to_sparse_csr(),
        conjugate=torch.tensor([1 + 2j]).conj(),
    )
    as_zip({"model": state, "epoch": 3}, folder / "x.pth")
    return read(folder / "x.pth")


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_tensors_that_only_torch_can_put_together(tmp_path: Path):
    weights = special(tmp_path)
    assert [info.shape for info in weights.tensors.values()] == [(2,), (3, 3), (3, 3), (1,)]
    assert {info.dtype for info in weights.tensors.values()} == {torch.float32, torch.complex64}
    assert "3 tensors (conjugate, sparse) are read by torch.load" in weights.notes[-1]
    found = dict(weights.read_many())
    assert set(found) == set(weights.tensors)
    assert torch.equal(found["coordinates"].to_dense(), torch.eye(3))
    assert torch.equal(weights.read("rows").to_dense(), torch.eye(3))
    assert found["conjugate"].item() == 1 - 2j


def test_a_tensor_saved_without_values_has_none(tmp_path: Path):
    as_zip({"a": torch.empty(2, 3, device="meta")}, tmp_path / "x.pth")
    weights = read(tmp_path / "x.pth")
    assert weights.tensors["a"].shape == (2, 3)
    with pytest.raises(WeightsError, match="without its values"):
        weights.read("a")


@pytest.mark.parametrize("anywhere", [True, False])
def test_a_large_tensor_is_read_by_several_threads_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anywhere: bool
):
    monkeypatch.setattr(filling, "CHUNK", 1000)
    monkeypatch.setattr(filling, "SMALL", 100)
    monkeypatch.setattr(filling, "THREADS", 3)
    monkeypatch.setattr(filling, "ANYWHERE", anywhere)
    tensors = {"big": torch.randn(123, 457), "small": torch.arange(7), "odd": torch.randn(6001)}
    save_file(tensors, tmp_path / "x.safetensors")
    weights = read(tmp_path / "x.safetensors")
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in tensors.items())


def test_a_file_that_ends_while_threads_read_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(filling, "CHUNK", 1000)
    monkeypatch.setattr(filling, "SMALL", 100)
    path = tmp_path / "x.safetensors"
    save_file({"big": torch.randn(123, 457)}, path)
    weights = read(path)
    monkeypatch.setattr(filling, "read_at", lambda file, left, place: 0)
    with pytest.raises(ChangedFileError, match="before this tensor does"):
        weights.read("big")


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), ahead=st.integers(0, 300))
def test_what_is_read_ahead_is_what_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], ahead: int
):
    path = tmp_path_factory.mktemp("ahead") / "x.safetensors"
    tensors = {f"t{i}": torch.arange(size) + 100 * i for i, size in enumerate(sizes)}
    save_file(tensors, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "AHEAD", ahead)
        patch.setattr(filling, "SMALL", 50)
        found = dict(read(path).read_many())
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_no_more_is_read_ahead_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file({f"t{i:02}": torch.full((100,), i) for i in range(20)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(stored, "AHEAD", 2 * 800)
    begun: list[int] = []
    start = filling.Filler.start

    def counted(self: filling.Filler, offset: int, flat: torch.Tensor):
        begun.append(offset)
        return start(self, offset, flat)

    monkeypatch.setattr(filling.Filler, "start", counted)
    for taken, _ in enumerate(read(tmp_path / "x.safetensors").read_many(), 1):
        assert taken <= len(begun) <= taken + 2


def test_a_reader_that_stops_early_leaves_no_thread(tmp_path: Path):
    save_file({f"t{i}": torch.zeros(1 << 18) for i in range(8)}, tmp_path / "x.safetensors")
    before = threading.active_count()
    coming = read(tmp_path / "x.safetensors").read_many()
    next(coming)
    coming.close()
    assert threading.active_count() == before
