"""A pickle runs nothing, whatever form it comes in, and says what it wanted."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from surgery.errors import CorruptFileError, RefusedPickleError, SurgeryError
from surgery.weights import pickled, read
from tests.weights.broken import (
    STATE,
    Call,
    Named,
    Reference,
    Writer,
    legacy,
    repacked,
    written,
    zipped,
)

MARKER = "it-ran"


class Attack:
    """Leaves a marker when it is unpickled by anything that believes it."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def attacks(folder: Path) -> dict[str, Attack]:
    marker = str(folder / MARKER)
    return {
        "posix.system": Attack(os.system, f"touch {marker}"),
        "builtins.eval": Attack(eval, f"__import__('os').mkdir({marker!r})"),
        "builtins.exec": Attack(exec, f"import os; os.mkdir({marker!r})"),
        "posix.mkdir": Attack(os.mkdir, marker),
    }


def forms(folder: Path, content: object) -> dict[str, Path]:
    """The same content in every form that holds a pickle."""
    folder.mkdir()
    data = pickle.dumps(content, 2)
    found = {"plain": written(folder / "plain.pth", data)}
    for name, save in ("zip", zipped), ("legacy", legacy):
        (folder / name).mkdir()
        found[name] = save(folder / name, content)
    (folder / "protocol4").mkdir()
    found["protocol4"] = repacked(
        zipped(folder / "protocol4"),
        lambda records: records.update({"data.pkl": pickle.dumps(content, 4)}),
    )
    (folder / "shards").mkdir()
    shard = zipped(folder / "shards", content)
    table = {"weight_map": {"weight": shard.name}}
    found["sharded"] = written(folder / "shards/x.index.json", json.dumps(table).encode())
    return found


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "builtins.exec", "posix.mkdir"])
def test_a_malicious_pickle_does_not_run_and_is_named(name: str, tmp_path: Path):
    content = {**STATE, "evil": attacks(tmp_path)[name]}
    for form, path in forms(tmp_path / "forms", content).items():
        with pytest.raises(SurgeryError) as caught:
            read(path)
        assert not (tmp_path / MARKER).exists(), form
        if form != "plain":
            assert isinstance(caught.value, RefusedPickleError), form
            # In a pickle without references the storages are pickled by their own function.
            named = set(str(caught.value.found).split(", ")) - {"torch.storage._load_from_bytes"}
            assert named == {name}, form

    # The control: whoever believes it does run it.
    pickle.loads(pickle.dumps(attacks(tmp_path)[name], 2))
    assert (tmp_path / MARKER).exists()


def test_every_global_is_named_not_the_first_alone(tmp_path: Path):
    content = {**STATE, "args": argparse.Namespace(lr=0.1), "net": nn.Linear(2, 2)}
    with pytest.raises(RefusedPickleError) as caught:
        read(zipped(tmp_path, content))
    assert caught.value.found == "argparse.Namespace, torch.nn.modules.linear.Linear"


def test_what_a_user_calls_safe_is_passed_over_and_still_not_made(tmp_path: Path):
    made = []

    class Settings(argparse.Namespace):
        def __init__(self, **values: object) -> None:
            made.append(self)
            super().__init__(**values)

    Settings.__qualname__ = "Settings"
    globals()["Settings"] = Settings
    path = zipped(tmp_path, {"model": STATE, "args": Settings(lr=0.1)})
    made.clear()
    with pytest.raises(RefusedPickleError):
        read(path)
    with torch.serialization.safe_globals([Settings]):
        weights = read(path)
    assert list(weights.tensors) == list(STATE)
    assert weights.notes == ("beside 'model': args (inert)",)
    assert made == []


@pytest.mark.parametrize(
    ("code", "about"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", "given a state"),
        (b"ccollections\nOrderedDict\nN}X\x04\x00\x00\x00evilK\x01s\x86b.", "given a state"),
        (b"ctorch\nFloatStorage\n}b.", "given a state"),
        (b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "bytearray of a number"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "codec"),
        (b"\x82\x01.", "extension"),
    ],
)
def test_tricks_of_the_language_end_in_an_error(code: bytes, about: str):
    with pytest.raises(CorruptFileError) as caught:
        pickled.load(b"\x80\x02" + code, "x.pth")
    assert about in str(caught.value.found)
    # What was handed out is as it was.
    assert pickled.load(pickle.dumps(OrderedDict(a=1), 2), "x.pth").content == {"a": 1}


def test_a_name_twice_in_an_ordered_dict_is_an_error():
    code = pickle.dumps(OrderedDict(a=1, b=2), 2).replace(
        b"X\x01\x00\x00\x00b", b"X\x01\x00\x00\x00a"
    )
    with pytest.raises(CorruptFileError) as caught:
        pickled.load(code, "x.pth")
    assert "'a' stands twice" in str(caught.value.found)


def test_plain_values_come_through():
    values = {
        "none": None,
        "numbers": [1, -(2**70), 2.5, 3 + 4j, True],
        "text": "é\n",
        "bytes": b"\x00\xff",
        "array": bytearray(b"12"),
        "set": {1, 2},
        "count": Counter("aab"),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:1"),
    }
    found = pickled.load(pickle.dumps(values, 2), "x.pth").content
    assert found.pop("size") == (2, 3)
    assert found.pop("device") == "cuda:1"
    assert found == {name: value for name, value in values.items() if name in found}
    assert len(found) == len(values) - 2


def test_a_memo_of_four_billion_entries_costs_nothing():
    assert pickled.load(b"\x80\x02Nr\xff\xff\xff\xff.", "x.pth").content is None


def test_a_part_of_a_storage_in_the_legacy_format(tmp_path: Path):
    values = torch.arange(6.0)
    data = legacy_with_part(values, (2, 3))
    path = written(tmp_path / "x.pth", data)
    expected = torch.load(path, weights_only=True)
    assert expected["weight"].tolist() == [2.0, 3.0, 4.0]
    assert torch.equal(read(path).read("weight"), expected["weight"])
    with pytest.raises(CorruptFileError):
        read(written(tmp_path / "y.pth", legacy_with_part(values, (4, 3))))


def legacy_with_part(values: torch.Tensor, part: tuple[int, int]) -> bytes:
    """As PyTorch wrote it when storages could be parts of each other."""
    storage = Named("torch FloatStorage")
    reference = Reference(("storage", storage, "7", "cpu", len(values), ("part", *part)))
    args = (reference, 0, (part[1],), (1,), False, OrderedDict())
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    content = {"weight": Call("torch._utils _rebuild_tensor_v2", args)}
    pickles = (0x1950A86A20F9469CFC6C, 1001, system, content, ["7"])
    raw = struct.pack(f"<q{len(values)}f", len(values), *values.tolist())
    return b"".join(map(Writer.dumps, pickles)) + raw
