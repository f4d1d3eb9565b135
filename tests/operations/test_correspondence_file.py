"""A correspondence that was written to a file is the one that was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import CorruptFileError, WeightsError
from surgery.families.registry import Registry
from tests.operations import aligned

NOTHING = Registry.of()
X = torch.zeros(2, 3, 5, 5)


class Biased(nn.Module):
    """Two layers, one with a bias or without, and a table."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5, bias=bias)
        self.last = nn.Linear(5, 4)
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x) + self.table))  # type: ignore[no-any-return]


def tall(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, classes))


PAIRS: dict[str, tuple[nn.Module, nn.Module]] = {
    "blocks": (aligned.Blocks(), aligned.OtherBlocks()),
    "a bias that only the donor has": (Biased(True), Biased(False)),
    "a bias that only the recipient has": (Biased(False), Biased(True)),
    "another head": (tall(2), tall(3)),
}


def found_between(name: str) -> surgery.Correspondence:
    return surgery.align(*PAIRS[name], example=X, registry=NOTHING)


def written(found: surgery.Correspondence, folder: Path) -> Path:
    file = folder / "found.json"
    file.write_text(surgery.report(found, "json"), "utf-8")
    return file


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path):
    found = found_between(name)
    again = surgery.read_correspondence(written(found, tmp_path))
    assert surgery.report(again, "json") == surgery.report(found, "json")
    assert (again.donor, again.recipient) == (found.donor, found.recipient)
    assert set(again.pairs) == set(found.pairs)
    assert again.rename == found.rename
    assert (again.donor_only, again.recipient_only) == (found.donor_only, found.recipient_only)


@pytest.mark.parametrize("name", PAIRS)
def test_it_converts_there_and_back(name: str, tmp_path: Path):
    donor, recipient = PAIRS[name]
    found = found_between(name)
    again = surgery.read_correspondence(written(found, tmp_path))
    for one, other, model in ((found, again, donor), (found.inverse(), again.inverse(), recipient)):
        expected, given = (each.convert(model.state_dict()) for each in (one, other))
        assert given.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in given.items())


@pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
def test_a_checkpoint_is_read_by_it(kind: Callable[[Path], Any], tmp_path: Path):
    donor, recipient = aligned.Blocks().eval(), aligned.OtherBlocks().eval()
    file = written(surgery.align(donor, recipient, example=X, registry=NOTHING), tmp_path)
    surgery.load_weights(recipient, donor.state_dict(), rename=kind(file), registry=NOTHING)
    x = torch.randn(X.shape)
    assert torch.allclose(recipient(x), donor(x), atol=1e-6)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(name)


def beyond(content: dict[str, Any]) -> None:
    content["pairs"][0]["theirs"][0] = 10**9


def unequal(content: dict[str, Any]) -> None:
    content["pairs"][0]["theirs"][1:] = [[1], [1]]


def negative(content: dict[str, Any]) -> None:
    content["pairs"][0]["ours"][2][0] = -1


def unknown(content: dict[str, Any]) -> None:
    content["pairs"][0]["donor"] = "nowhere"


def other(content: dict[str, Any]) -> None:
    content["schema"] = "surgery/audit/1"


BROKEN = [without(key) for key in ("pairs", "donor", "donor_tensors", "left", "unsettled")]
BROKEN += [beyond, unequal, negative, unknown, other]
NAMES = ["no pairs", "no donor", "no tensors", "nothing left", "none unsettled"]
NAMES += ["beyond", "unequal", "negative", "unknown", "another report"]


@pytest.mark.parametrize("damage", BROKEN, ids=NAMES)
def test_what_is_broken_is_refused(damage: Callable[[dict[str, Any]], object], tmp_path: Path):
    file = written(found_between("blocks"), tmp_path)
    content = json.loads(file.read_text("utf-8"))
    damage(content)
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(CorruptFileError) as caught:
        surgery.read_correspondence(file)
    assert caught.value.where == str(file)
    assert "surgery align" in str(caught.value.fix)


@pytest.mark.parametrize("text", ["", "[]", "{", '"found"', '{"schema": 1}', "\xff"])
def test_other_files_are_refused(text: str, tmp_path: Path):
    file = tmp_path / "found.json"
    file.write_text(text, "latin-1")
    with pytest.raises(CorruptFileError):
        surgery.read_correspondence(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    model = aligned.Blocks()
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            surgery.load_weights(model, model.state_dict(), rename=path, registry=NOTHING)
