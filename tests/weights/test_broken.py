"""Every kind of broken file has an error of its own, and nothing else comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import CorruptFileError, SurgeryError
from surgery.weights import read
from tests.weights import broken_folders
from tests.weights.broken import (
    BROKEN,
    STATE,
    Broken,
    Named,
    legacy,
    pickled,
    repacked,
    zipped,
)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.name)
def test_a_broken_source_says_what_is_wrong(kind: Broken, tmp_path: Path):
    source = kind.make(tmp_path)
    with pytest.raises(SurgeryError) as caught:
        read(source)
    error = caught.value
    assert error.what == kind.what
    assert type(error) is kind.error
    assert str(tmp_path) in str(error.where)
    assert error.fix


def test_there_are_many_kinds_of_damage_and_no_two_sound_alike():
    assert broken_folders.sharded is not None
    assert len(BROKEN) >= 30
    whats = [kind.what for kind in BROKEN]
    repeated = {what for what in whats if whats.count(what) > 1}
    # A shard that is cut short is a file that is cut short.
    assert repeated == {"the file ends inside its header"}


def written(folder: Path, kind: str) -> Path:
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(STATE, folder / "x.safetensors")
        return folder / "x.safetensors"
    return zipped(folder) if kind == "zip" else legacy(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {
        kind: written(tmp_path_factory.mktemp(kind), kind).read_bytes()
        for kind in ("safetensors", "zip", "legacy")
    }


def right_or_refused(path: Path) -> bool:
    """Whether a damaged file was refused; where it was not, its tensors are the right ones."""
    try:
        weights = read(path)
        found = dict(weights.read_many())
    except SurgeryError:
        return True
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    return False


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, kind: str, share: float
):
    path = tmp_path_factory.getbasetemp() / f"cut.{kind}"
    path.write_bytes(whole[kind][: int(share * len(whole[kind]))])
    assert right_or_refused(path)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_small_file_cut_at_any_byte_is_refused(
    whole: dict[str, bytes], tmp_path: Path, kind: str
):
    path = tmp_path / f"x.{kind}"
    for size in range(len(whole[kind])):
        path.write_bytes(whole[kind][:size])
        assert right_or_refused(path), size


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_wrong_byte_anywhere_raises_nothing_of_pythons_or_torchs(
    whole: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    at: float,
    value: int,
):
    data = bytearray(whole[kind])
    data[int(at * len(data))] = value
    path = tmp_path_factory.getbasetemp() / f"wrong.{kind}"
    path.write_bytes(data)
    try:
        found = dict(read(path).read_many())
    except SurgeryError:
        return
    # What the file says was believed; it is still tensors by name.
    assert all(isinstance(name, str) for name in found)


@given(data=st.binary(max_size=300))
def test_a_pickle_of_any_bytes_raises_nothing_of_pythons(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: bytes
):
    path = tmp_path_factory.getbasetemp() / "any.pth"
    path.write_bytes(whole["zip"])
    repacked(path, lambda records: records.update({"data.pkl": b"\x80\x02" + data}))
    with pytest.raises(SurgeryError):
        read(path)


HUGE = 10**9999


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": HUGE, HUGE: 1},
        {"model": STATE, "ema": STATE, "epoch": HUGE},
        {"\x1b[2J": 1, "list": [[[]]] * 9},
    ],
)
@pytest.mark.parametrize("save", [zipped, legacy])
def test_numbers_too_large_to_write_and_names_that_steer_a_terminal(
    content: dict[object, object], save: Callable[..., Path], tmp_path: Path
):
    with pytest.raises(SurgeryError) as caught:
        read(save(tmp_path, content))
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("where", ["offset", "size", "stride"])
def test_a_huge_number_for_a_tensor_is_an_error(where: str, tmp_path: Path):
    said = HUGE if where == "offset" else (HUGE, 3)
    with pytest.raises(CorruptFileError, match="malformed"):
        read(pickled(tmp_path, **{where: said}))


def test_a_huge_number_for_a_storage_is_an_error(tmp_path: Path):
    fields = ("storage", Named("torch FloatStorage"), "0", "cpu", HUGE)
    with pytest.raises(CorruptFileError, match="pickle in this file is broken"):
        read(pickled(tmp_path, storage=fields))
