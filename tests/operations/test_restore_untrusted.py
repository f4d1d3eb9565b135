"""A file may hold anything: it is refused with an error of its own, and nothing is half done."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import (
    ArgumentError,
    CorruptFileError,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
    VerificationError,
    WeightsError,
)
from surgery.operations.literals import Opaque, decode, encode
from surgery.operations.recorded import KEY
from surgery.weights import read
from surgery.weights.write import write
from tests.operations.cases import Branches
from tests.operations.state import differences, state_of

# Every record drawn is a file: `make test-all` has the time for many.
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
EXAMPLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def _saved(folder: Path) -> Path:
    model = Branches()
    surgery.replace_head(model, 4, heads="fc", hidden=[3], example=EXAMPLE)
    surgery.freeze(model, "trunk")
    return surgery.save(model, folder / "saved.safetensors").path


def _tampered(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same file with another record."""
    weights = read(path)
    record = json.loads(weights.metadata[KEY])
    given = change(record)
    text = given if isinstance(given, str) else json.dumps(record)
    other = path.with_name("tampered.safetensors")
    metadata = {**weights.metadata, KEY: text}
    return write(other, dict(weights.read_many()), metadata, overwrite=True)


def _form(record: dict[str, Any], address: str) -> dict[str, Any]:
    found: dict[str, Any] = record["forms"][record["modules"][address][0]]
    return found


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(record: Any) -> None:
        for step in way:
            record = record[step]
        record[last] = value

    return change


def _fact(address: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: _form(record, address)["facts"].update({name: value})


CASES: dict[str, tuple[Callable[[dict[str, Any]], Any], type[SurgeryError], str]] = {
    "no JSON": (lambda r: "{", CorruptFileError, "JSON"),
    "a list": (lambda r: "[1]", CorruptFileError, "version"),
    "nested without end": (lambda r: "[" * 99999, CorruptFileError, "JSON"),
    "a key twice": (lambda r: '{"version": 1, "version": 1}', CorruptFileError, "JSON"),
    "a later version": (_set("version", 2), PlanError, "later version"),
    "a version that is none": (_set("version", True), CorruptFileError, "version"),
    "modules are a list": (_set("modules", []), CorruptFileError, "modules"),
    "no root": (lambda r: r["modules"].pop("") and None, CorruptFileError, "no model"),
    "an unknown form": (_set("modules", "fc", [999, 0]), CorruptFileError, "malformed"),
    "a form below zero": (_set("modules", "fc", [-1, 0]), CorruptFileError, "malformed"),
    "unknown flags": (_set("modules", "fc", [0, 9]), CorruptFileError, "malformed"),
    "too deep": (_set("modules", "a." * 999, [0, 0]), CorruptFileError, "malformed"),
    "a form that is a text": (_set("forms", 0, "x"), CorruptFileError, "form"),
    "an address twice": (_set("ties", [["a", "a"]]), CorruptFileError, "ties"),
    "an empty tie": (_set("ties", [[]]), CorruptFileError, "ties"),
    "a tensor that is not there": (
        lambda r: r["tensors"].append("more.weight"),
        CorruptFileError,
        "does not describe",
    ),
    "a tensor that is not told": (
        lambda r: r["tensors"].remove("fc.0.weight"),
        CorruptFileError,
        "does not describe",
    ),
    "strides that overlap": (_set("strides", "fc.0.weight", [1, 1]), CorruptFileError, "strides"),
    "absurd strides": (_set("strides", "fc.0.weight", [2**40, 1]), CorruptFileError, "strides"),
    "too few strides": (_set("strides", "fc.0.weight", [1]), CorruptFileError, "strides"),
    "strides of nothing": (_set("strides", "x", [1]), CorruptFileError, "does not describe"),
    "an unknown class": (
        lambda r: _form(r, "fc.0").update({"class": "os.system"}),
        PlanError,
        "keeps no code",
    ),
    "a class that is no module": (
        lambda r: _form(r, "fc.0").update({"class": "torch.nn.parameter.Parameter"}),
        PlanError,
        "keeps no code",
    ),
    "a module that is not described": (
        lambda r: r["modules"].pop("fc.0") and None,
        CorruptFileError,
        "does not describe|not described",
    ),
    "a value that stands for nothing": (
        _fact("", "num_classes", {"exec": ["1"]}),
        CorruptFileError,
        "stands for nothing",
    ),
    "a function": (
        _fact("fc.0", "activation", {"function": "torch.load"}),
        CorruptFileError,
        "stands for nothing",
    ),
    "a method in a part that is made": (_fact("fc.0", "forward", 3), PlanError, "keeps no code"),
    "torch's own state": (_fact("fc.0", "_forward_hooks", {"dict": []}), PlanError, "no code"),
    "a list of other weights": (
        _fact("fc.0", "_flat_weights", {"own": ["../../x"]}),
        CorruptFileError,
        "names one that is not there",
    ),
    "computed weights": (
        lambda r: _form(r, "fc.0").update({"hooks": ["torch.nn.utils.weight_norm.WeightNorm"]}),
        PlanError,
        "computed from others",
    ),
    "another trunk": (
        lambda r: _form(r, "trunk").update({"class": "acme.Trunk"}),
        PlanError,
        "acme.Trunk",
    ),
    "an operation that is none": (_set("operations", [3]), CorruptFileError, "operation"),
    "a call that is none": (
        _set("operations", 0, {"title": "x", "call": 3}),
        CorruptFileError,
        "operation",
    ),
    "names that are none": (_set("classes", [3]), CorruptFileError, "classes"),
}


def _foreign_modules() -> set[str]:
    """What is imported besides torch and this project, both of which import late."""
    return {name for name in sys.modules if name.partition(".")[0] not in ("torch", "surgery")}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_each_record_that_is_wrong_is_refused(tmp_path: Path, name: str, live: bool) -> None:
    change, error, match = CASES[name]
    path = _tampered(_saved(tmp_path), change)
    model = Branches()
    before = state_of(model)
    modules = _foreign_modules()
    with pytest.raises(error) as caught:
        surgery.restore(model if live else Branches, path)
    assert re.search(match, str(caught.value)), str(caught.value)
    assert caught.value.fix
    assert not differences(before, state_of(model))
    assert _foreign_modules() == modules


def test_a_method_of_a_module_that_stays_is_not_overwritten(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        _fact("", "forward", "x")(record)
        _fact("", "__class__", "x")(record)
        _fact("", "_modules", {"dict": []})(record)
        _fact("", "config.more", 3)(record)

    outcome = surgery.restore(Branches, _tampered(_saved(tmp_path), change))
    assert len([note for note in outcome.plan.notes if "is not set" in note]) == 4
    assert outcome.model(EXAMPLE)[0].shape == (3, 4)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "fc", "fc.0.weight", "torch.nn.modules.linear.Linear", "a.b", "dict"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tuple", "dict", "own", "fc", "weight"]), inner, max_size=2
        )
    ),
    max_leaves=4,
)


def _places(value: Any, above: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    if above is not None:
        yield above, key
    pairs = list(value.items()) if isinstance(value, dict) else []
    for inner, item in pairs or (list(enumerate(value)) if isinstance(value, list) else []):
        yield from _places(item, value, inner)


@given(st.data())
@settings(max_examples=120 if LONG else 40)
def test_any_other_record_is_an_error_or_a_model(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = _saved(tmp_path_factory.mktemp("saved"))

    def change(record: dict[str, Any]) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            places = list(_places(record))
            above, key = places[data.draw(st.integers(0, len(places) - 1))]
            if data.draw(st.booleans()) and isinstance(above, dict):
                del above[key]
            else:
                above[key] = data.draw(_JSON)

    other = _tampered(path, change)
    model = Branches()
    before = state_of(model, process=False)
    try:
        surgery.restore(Branches, other)
        surgery.restore(model, other).undo()
    except SurgeryError:
        assert not differences(before, state_of(model, process=False))


def test_a_record_without_one_of_its_modules_is_an_error_or_a_model(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    addresses: list[str] = []
    _tampered(path, lambda record: addresses.extend(record["modules"]))
    assert "trunk.2" in addresses
    for address in addresses:

        def change(record: dict[str, Any], address: str = address) -> None:
            del record["modules"][address]

        with contextlib.suppress(SurgeryError):
            surgery.restore(Branches, _tampered(path, change))


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([torch.float16, torch.Size([1, 2]), nn.functional.relu, torch.tanh]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(-9, 9), inner, max_size=3)
        | st.frozensets(st.integers(-9, 9), max_size=3)
    ),
    max_leaves=8,
)


@given(_PLAIN)
def test_plain_values_keep_their_value_and_type(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value), allow_nan=False)), "here")
    assert repr(again) == repr(value)
    assert type(again) is type(value)


def test_what_is_not_plain_is_not_encoded() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), endless, lambda x: x, torch.ones(1), 2**64, [0] * 100_001, torch.load):
        with pytest.raises(Opaque):
            encode(value)


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.safetensors", Branches().state_dict(), {"format": "pt"})
    with pytest.raises(PlanError, match="did not write it") as caught:
        surgery.restore(Branches, plain)
    assert "load_weights" in str(caught.value.fix)
    with pytest.raises(WeightsError, match="no such file"):
        surgery.restore(Branches, tmp_path / "nothing")
    torch.save(Branches().state_dict(), tmp_path / "a.pt")
    with pytest.raises(PlanError, match="did not write it"):
        surgery.restore(Branches, tmp_path / "a.pt")
    half = tmp_path / "half.safetensors"
    half.write_bytes(_saved(tmp_path).read_bytes()[:-9])
    with pytest.raises(CorruptFileError):
        surgery.restore(Branches, half)


class Own(nn.Module):
    """A head of a user's own."""

    def __init__(self, classes: int, act: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.fc = nn.Linear(8, classes)
        self.scale = nn.Parameter(torch.ones(classes))
        if act is not None:
            self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale


def test_a_class_of_the_users_own_needs_their_word(tmp_path: Path) -> None:
    model = Branches()
    surgery.replace(model, {"fc": Own(5)}, example=EXAMPLE)
    path = surgery.save(model, tmp_path / "a").path
    with pytest.raises(PlanError, match="vouch") as caught:
        surgery.restore(Branches, path)
    assert "trusted" in str(caught.value.fix)
    assert f"{Own.__module__}.Own" in str(caught.value)
    for trusted in (Own, [Own]):
        again: Any = surgery.restore(Branches, path, trusted=trusted).model  # type: ignore[arg-type]
        assert torch.equal(again.eval()(EXAMPLE), model.eval()(EXAMPLE))
    with pytest.raises(ArgumentError, match="classes of modules"):
        surgery.restore(Branches, path, trusted=[print])  # type: ignore[list-item]


def test_code_in_a_part_needs_a_target_that_makes_it(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = Branches()
        model.fc = Own(7, lambda x: x)  # type: ignore[assignment]
        return model

    model = Branches()
    new = Own(5, lambda x: x)
    surgery.replace(model, {"fc": new}, example=EXAMPLE)
    path = surgery.save(model, tmp_path / "a").path
    with pytest.raises(PlanError, match=r"act"):
        surgery.restore(Branches, path, trusted=[Own])
    again: Any = surgery.restore(make, path).model
    assert again.fc.classes == 5
    assert torch.equal(again.eval()(EXAMPLE), model.eval()(EXAMPLE))


def test_another_target_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    with pytest.raises(PlanError, match=r"Branches.* in the file"):
        surgery.restore(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), path)
    with pytest.raises(PlanError, match="constructor raised"):
        surgery.restore(lambda: nn.Linear(-1, 2), path)
    with pytest.raises(ArgumentError, match="no catalog"):
        surgery.restore("nowhere:nothing", path)
    with pytest.raises(ArgumentError, match="takes no arguments"):
        surgery.restore(Branches(), path, width=3)
    with pytest.raises(ArgumentError, match="nothing to plan"):
        surgery.restore(Branches, path, dry_run=True)
    with pytest.raises(UnsupportedModelError):
        surgery.restore(lambda: 3, path)  # type: ignore[arg-type, return-value]


def test_a_target_that_resists_is_an_error(tmp_path: Path) -> None:
    class Stubborn(Branches):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, 5 if name == "num_classes" else value)

    model = Stubborn()
    model.__dict__["num_classes"] = 9
    path = surgery.save(model, tmp_path / "a").path
    here = Stubborn()
    before = state_of(here)
    for target in (Stubborn, here):
        with pytest.raises(VerificationError):
            surgery.restore(target, path)
    assert not differences(before, state_of(here))
