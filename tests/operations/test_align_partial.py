"""Models that have a part in common: deeper, shallower, wider, another head, none, another stem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import VisionTransformer

import surgery
from surgery.errors import CoverageError, PlanError
from surgery.families.registry import Registry
from tests.operations.aligned import contents, shaken

timm = pytest.importorskip("timm")
NOTHING = Registry.of()
SLOW = pytest.mark.slow
IMAGE = torch.zeros(1, 3, 64, 64)
SMALL = torch.zeros(1, 3, 16, 16)


def resnet(layers: int, library: str, **options: Any) -> nn.Module:
    if library == "timm":
        return timm.create_model(f"resnet{layers}", **options).eval()
    return torchvision.models.get_model(f"resnet{layers}", weights=None, **options).eval()


def vit(depth: int, library: str, width: int = 24, classes: int = 10) -> nn.Module:
    if library == "timm":
        return timm.create_model(
            "vit_base_patch16_224",
            img_size=16,
            patch_size=8,
            embed_dim=width,
            depth=depth,
            num_heads=3,
            mlp_ratio=2,
            num_classes=classes,
        ).eval()
    return VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=depth,
        num_heads=3,
        hidden_dim=width,
        mlp_dim=2 * width,
        num_classes=classes,
    ).eval()


def moved(donor: nn.Module, recipient: nn.Module, example: torch.Tensor, **options: Any) -> Any:
    return surgery.transplant(
        donor, recipient, match="graph", example=example, registry=NOTHING, **options
    )


def proof_of(outcome: surgery.Outcome) -> str:
    return next(note for note in outcome.plan.notes if note.startswith("proven: "))


def unproven(outcome: surgery.Outcome) -> str:
    """What stands where the graphs put it, and no comparison confirms."""
    notes = (n for n in outcome.plan.notes if n.startswith("placed by the graphs alone"))
    return next(notes, "")


def check_told(found: surgery.Correspondence) -> None:
    """Every tensor of either side is in a pair, a table, or listed with a reason."""
    for form, done, left in (
        (found.donor, found.read, found.donor_only),
        (found.recipient, set(found.parts), found.recipient_only),
    ):
        listed = {each.address for each in left}
        assert listed | set(done) | set(form.constants) == set(form.shapes)
        assert listed.isdisjoint(done)
        assert all(each.reason and each.shape == form.shapes[each.address] for each in left)


@pytest.mark.parametrize(("donor", "recipient"), [(6, 12), (12, 6)])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_blocks_align_from_the_front_and_the_head_from_the_back(
    donor: int, recipient: int, library: str
):
    other = "timm" if library == "torchvision" else "torchvision"
    one, two = vit(donor, library), vit(recipient, other)
    found = surgery.align(one, two, example=SMALL, registry=NOTHING)
    check_told(found)
    assert not found.complete
    assert found.coverage == 1
    straight = found.straight
    ends = {"torchvision": ("encoder.ln.weight", "heads.head.weight")}
    ends["timm"] = ("norm.weight", "head.weight")
    for theirs, ours in zip(ends[library], ends[other], strict=True):
        assert straight[ours] == theirs
    extra = found.recipient_only if recipient > donor else found.donor_only
    block = {"torchvision": "encoder.layers.encoder_layer_{}.", "timm": "blocks.{}."}
    names = [block[other if recipient > donor else library].format(n) for n in range(6, 12)]
    assert all(each.address.startswith(tuple(names)) for each in extra)
    assert {name for name in names for each in extra if each.address.startswith(name)} == set(names)
    before = contents(two)
    outcome = moved(one, two, SMALL)
    assert "of output" in proof_of(outcome)
    assert not any(name in unproven(outcome) for name in ends[library])
    (seams,) = (n for n in outcome.plan.notes if n.startswith("compared from there on"))
    assert block[other].format(recipient - 1).rstrip(".") in seams
    outcome.undo()
    assert contents(two) == before


def test_what_both_have_in_common_computes_the_same():
    one, two = vit(2, "torchvision"), vit(4, "timm")
    moved(one, two, SMALL)
    x = torch.randn(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    for block in (one.encoder.layers[1], two.blocks[1]):
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        one(x), two(x)
    assert torch.allclose(seen[0], seen[1], atol=1e-5)


@pytest.mark.parametrize(
    ("library", "donor", "recipient"),
    [
        ("torchvision", 18, 34),
        ("timm", 34, 18),
        pytest.param("torchvision", 34, 18, marks=SLOW),
        pytest.param("timm", 18, 34, marks=SLOW),
    ],
)
def test_every_stage_deeper_leaves_the_first_in_common(donor: int, recipient: int, library: str):
    other = "timm" if library == "torchvision" else "torchvision"
    one, two = resnet(donor, library), resnet(recipient, other)
    found = surgery.align(one, two, example=IMAGE, registry=NOTHING)
    check_told(found)
    before = contents(two)
    with pytest.raises(CoverageError, match="have a counterpart") as caught:
        moved(one, two, IMAGE)
    assert "layer2" in str(caught.value)
    assert "min_coverage=0.4" in str(caught.value)
    assert contents(two) == before
    outcome = moved(one, two, IMAGE, min_coverage=0.4)
    assert "of output, layer1.1" in proof_of(outcome)
    assert torch.equal(two.layer1[1].conv2.weight, one.layer1[1].conv2.weight)
    assert torch.equal(two.fc.weight, one.fc.weight)
    assert "layer" not in unproven(outcome)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_another_width_has_nothing_in_common(library: str):
    other = "timm" if library == "torchvision" else "torchvision"
    one, two = vit(2, library), vit(2, other, width=48)
    before = contents(two)
    with pytest.raises(PlanError, match="nothing in common") as caught:
        surgery.align(one, two, example=SMALL, registry=NOTHING)
    assert " is (" in str(caught.value)
    for least in (0.5, 0.0):
        with pytest.raises(PlanError, match="nothing in common"):
            moved(one, two, SMALL, min_coverage=least)
    assert contents(two) == before


HEADS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "resnet": (
        lambda: resnet(18, "torchvision"),
        lambda: resnet(18, "timm", num_classes=5),
        "fc.weight",
    ),
    "vit": (lambda: vit(2, "torchvision"), lambda: vit(2, "timm", classes=5), "head.weight"),
    "mobilenet": (
        lambda: shaken(torchvision.models.mobilenet_v2(width_mult=0.5)),
        lambda: timm.create_model("mobilenetv2_050", num_classes=5).eval(),
        "classifier.weight",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_another_head_stays_and_is_listed_from_both_sides(name: str):
    donor, recipient = (make() for make in HEADS[name][:2])
    head = HEADS[name][2]
    before = recipient.get_parameter(head).clone()
    example = SMALL if name == "vit" else IMAGE
    outcome = moved(donor, recipient, example)
    assert torch.equal(recipient.get_parameter(head), before)
    found = surgery.align(donor, recipient, example=example, registry=NOTHING)
    check_told(found)
    assert [each.address for each in found.recipient_only] == [
        head,
        head.replace("weight", "bias"),
    ]
    assert len(found.donor_only) == 2
    listed = [note for note in outcome.plan.notes if note.startswith("not aligned")]
    assert len(listed) == 4
    assert "in the middle" in proof_of(outcome)
    # timm's last normalisation goes on with an activation, and its result is no result in common.
    assert ("features.18.1.weight" in unproven(outcome)) is (name == "mobilenet")


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_backbone_without_a_head_gives_and_gets_all_it_has(name: str, back: bool):
    if name == "vit":
        whole, bare, example = vit(2, "torchvision"), vit(2, "timm", classes=0), SMALL
    else:
        whole, bare, example = resnet(18, "torchvision"), resnet(18, "timm", num_classes=0), IMAGE
    donor, recipient = (bare, whole) if back else (whole, bare)
    moved(donor, recipient, example)
    found = surgery.align(donor, recipient, example=example, registry=NOTHING)
    check_told(found)
    assert found.coverage == 1
    assert len(found.recipient_only if back else found.donor_only) == 2
    assert not (found.donor_only if back else found.recipient_only)
    for address, name in found.straight.items():
        ours, theirs = recipient.state_dict()[address], donor.state_dict()[name]
        assert torch.equal(ours, theirs), address


class WithStem(nn.Module):
    """A layer in front that makes three channels of three."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.extra = nn.Conv2d(3, 3, 1)
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.extra(x))


@pytest.mark.parametrize("back", [False, True])
def test_an_extra_stem_is_left_out_and_all_behind_it_is_proven(back: bool):
    stemmed, plain = WithStem(vit(2, "timm")).eval(), vit(2, "torchvision")
    donor, recipient = (stemmed, plain) if back else (plain, stemmed)
    found = surgery.align(donor, recipient, example=SMALL, registry=NOTHING)
    check_told(found)
    assert found.coverage == 1
    before = contents(recipient)
    outcome = moved(donor, recipient, SMALL)
    assert "of output" in proof_of(outcome)
    assert not unproven(outcome)
    assert any("extra" in note for note in outcome.plan.notes if note.startswith("compared from"))
    outcome.undo()
    assert contents(recipient) == before


def test_what_a_layer_does_after_its_tensors_is_no_difference():
    """timm's normalisation goes on with an activation, torchvision's does not."""
    donor = shaken(torchvision.models.densenet121(num_classes=4))
    recipient = timm.create_model("densenet121", num_classes=5).eval()
    outcome = moved(donor, recipient, IMAGE)
    assert "in the middle" in proof_of(outcome)


def test_tables_go_with_the_block_that_reads_them():
    with torch.device("meta"):
        one = torchvision.models.swin_t()
        other = timm.create_model("swin_small_patch4_window7_224")
    example = torch.zeros(1, 3, 224, 224, device="meta")
    found = surgery.align(one, other, example=example, registry=NOTHING)
    check_told(found)
    table = "layers.2.blocks.{}.attn.relative_position_bias_table"
    for block in range(6):
        given = found.straight[table.format(block)]
        assert given == f"features.5.{block}.attn.relative_position_bias_table"
    left = {each.address for each in found.recipient_only}
    assert {table.format(block) for block in range(6, 18)} <= left
