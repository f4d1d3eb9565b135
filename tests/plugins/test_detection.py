"""Detectors after another number of classes: what follows, inference, training, class rows."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from surgery_plugins import detection
from surgery_plugins.detection_layers import dense_forward, rcnn_forward
from torch import nn
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN,
    RetinaNet,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign

import surgery
from surgery.errors import ArgumentError, NoHeadError, PlanError
from surgery.families import Family, HeadClaim
from surgery.families.applied import example_for
from surgery.families.registry import Registry
from surgery.graph.graph import Graph
from surgery.graph.walk import ancestors, weight_sources
from tests.operations.state import differences, state_of

FAMILIES = (detection.RCNN, detection.DENSE, detection.SSD)
REGISTRY = Registry.of(*FAMILIES)
CATALOG = {name: target for family in FAMILIES for name, target in family.catalog.items()}
SCORE, BOXES = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
MASKS = "roi_heads.mask_predictor.mask_fcn_logits"
KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres"


def build(name: str, **settings: Any) -> nn.Module:
    """A detector that looks at small images and keeps every box."""
    return quickened(resolve_name(CATALOG[name])(**settings))


def quickened(model: nn.Module) -> nn.Module:
    if not isinstance(model, SSD):
        model.transform.min_size, model.transform.max_size = (96,), 128
    for part in (model, getattr(model, "roi_heads", None)):
        if hasattr(part, "score_thresh"):
            part.score_thresh = 0.0
    return model.train()


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name)


def trunk() -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(3, 32, 3, 8, 1), nn.BatchNorm2d(32), nn.ReLU())
    made.out_channels = 32
    return made


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((24, 48),), ((0.5, 1.0, 2.0),))


def regions(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0"], size, 2)


def rcnn(kind: type[FasterRCNN], **settings: Any) -> nn.Module:
    return kind(
        trunk(),
        rpn_anchor_generator=anchors(),
        box_roi_pool=regions(7),
        box_head=TwoMLPHead(32 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 9),
        **settings,
    )


def fcos() -> nn.Module:
    return FCOS(trunk(), 9, anchor_generator=AnchorGenerator(((16,),), ((1.0,),)))


def ssd() -> nn.Module:
    made = trunk()
    made.out_channels = [32]
    return SSD(made, DefaultBoxGenerator([[2, 3]]), (96, 96), 9)


def ssdlite() -> nn.Module:
    model = ssd()
    model.head = SSDLiteHead([32], [6], 9, nn.BatchNorm2d)
    return model


# torchvision's own classes and heads over a trunk of one convolution.
TINY: dict[str, Callable[[], nn.Module]] = {
    "faster": lambda: rcnn(FasterRCNN),
    "mask": lambda: rcnn(
        MaskRCNN,
        mask_roi_pool=regions(14),
        mask_head=MaskRCNNHeads(32, (16,), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 9),
    ),
    "keypoint": lambda: rcnn(
        KeypointRCNN,
        keypoint_roi_pool=regions(14),
        keypoint_head=KeypointRCNNHeads(32, (16,)),
        keypoint_predictor=KeypointRCNNPredictor(16, 17),
    ),
    "retinanet": lambda: RetinaNet(trunk(), 9, anchor_generator=anchors()),
    "fcos": fcos,
    "ssd": ssd,
    "ssdlite": ssdlite,
}


def tiny(name: str) -> nn.Module:
    return quickened(TINY[name]())


def images() -> list[torch.Tensor]:
    return [torch.rand(3, 96, 96), torch.rand(3, 80, 112)]


def targets(model: nn.Module, labels: range) -> list[dict[str, torch.Tensor]]:
    """Two boxes an image, with labels out of a range, and masks and keypoints where wanted."""
    made = []
    for image in images():
        height, width = image.shape[-2:]
        boxes = torch.tensor([[8.0, 8.0, 60.0, 64.0], [20.0, 10.0, 76.0, 70.0]])
        target = {"boxes": boxes, "labels": torch.tensor([labels[0], labels[-1]])}
        heads = getattr(model, "roi_heads", None)
        if getattr(heads, "mask_predictor", None) is not None:
            target["masks"] = torch.ones(2, height, width, dtype=torch.uint8)
        if getattr(heads, "keypoint_predictor", None) is not None:
            count = heads.keypoint_predictor.kps_score_lowres.out_channels
            target["keypoints"] = torch.full((2, count, 3), 40.0)
        made.append(target)
    return made


def undone(model: nn.Module) -> nn.Module:
    return surgery.replace_head(model, 7, registry=REGISTRY).undo()


def operated(model: nn.Module) -> None:
    """Replace and undo; replace, infer and train; undo."""
    before = state_of(model, process=False)
    assert differences(before, state_of(undone(model), process=False)) == []
    weights = {address: p.detach().clone() for address, p in model.named_parameters()}
    outcome = surgery.replace_head(model, 7, registry=REGISTRY)
    assert all(check.passed for check in outcome.checks)
    losses = model(images(), targets(model, range(1, 7)))
    total = sum(losses.values())
    assert len(losses) > 1
    assert bool(torch.isfinite(total))
    total.backward()
    learning = {address for address, tensor in outcome.new.items() if tensor.grad.any()}
    assert all(bool(torch.isfinite(tensor.grad).all()) for tensor in outcome.new.values())
    # SSD learns from the hardest boxes alone, which may all be of one scale.
    assert learning if isinstance(model, SSD) else learning == set(outcome.new)
    with torch.no_grad():
        found = model.eval()(images())
    labels = torch.cat([each["labels"] for each in found])
    assert len(labels) > 0
    assert int(labels.max()) < 7
    outcome.undo()
    back = dict(model.named_parameters())
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[address], back[address]) for address in weights)


@pytest.mark.parametrize("name", TINY)
def test_a_detector_of_other_classes_infers_trains_and_goes_back(name: str):
    operated(tiny(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CATALOG))
def test_so_does_every_detector_of_torchvision(name: str):
    operated(build(name))


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_every_detector_of_torchvision_is_replaced_and_undone_on_meta(name: str):
    model = on_meta(name)
    before = state_of(model, process=False)
    assert differences(before, state_of(undone(model), process=False)) == []


def test_what_is_coupled_to_the_classes_follows():
    outcome = surgery.replace_head(on_meta("maskrcnn_resnet50_fpn"), 7, registry=REGISTRY)
    sizes = {address: tuple(tensor.shape) for address, tensor in outcome.new.items()}
    assert sizes == {
        f"{SCORE}.weight": (7, 1024),
        f"{SCORE}.bias": (7,),
        f"{BOXES}.weight": (28, 1024),
        f"{BOXES}.bias": (28,),
        f"{MASKS}.weight": (7, 256, 1, 1),
        f"{MASKS}.bias": (7,),
    }
    assert any("class 0 is the background: 7 classes are 6 kinds" in n for n in outcome.plan.notes)


@pytest.mark.parametrize(
    ("name", "layers", "count"),
    [
        ("retinanet_resnet50_fpn", {"cls_logits": 9 * 7}, "num_classes"),
        ("fcos_resnet50_fpn", {"cls_logits": 7}, "num_classes"),
        ("ssd300_vgg16", {f"module_list.{i}": n * 7 for i, n in enumerate((4, 6, 6, 6, 4, 4))}, ""),
        ("ssdlite320_mobilenet_v3_large", {f"module_list.{i}.1": 42 for i in range(6)}, ""),
    ],
)
def test_anchors_and_the_count_that_code_reshapes_by_follow(
    name: str, layers: dict[str, int], count: str
):
    model = on_meta(name)
    surgery.replace_head(model, 7, registry=REGISTRY)
    head = model.head.classification_head
    assert {path: head.get_submodule(path).out_channels for path in layers} == layers
    assert getattr(head, count or "num_columns") == 7


@pytest.mark.parametrize("name", TINY)
def test_forward_itself_leads_from_scores_to_the_claimed_layer(name: str):
    model = tiny(name)
    family = REGISTRY.claim(model)
    example = example_for(family, model)
    plain = surgery.Example(example.args, train=example.train)
    graph = surgery.record(model, plain, train=False, registry=Registry.of())
    assert graph.backend == "real"
    heads = surgery.find_heads(model, registry=REGISTRY)
    mains = {weight[0] for head in heads if head.role == "main" for weight in head.weights}
    assert mains
    assert mains <= behind(graph, "output[0]['scores']")
    trained = surgery.record(model, plain, train=True, registry=Registry.of())
    seen = {a for node in trained.nodes for addresses in node.parameters for a in addresses}
    assert {weight[0] for head in heads for weight in head.weights} <= seen


def behind(graph: Graph, path: str) -> set[str]:
    """Every parameter that an output was computed from."""
    source = next(leaf.source for leaf in graph.leaves if leaf.path == path)
    nodes = [source.node, *ancestors(graph, source.node)]
    return {
        address
        for index in nodes
        for ref in graph.nodes[index].inputs
        for weight in weight_sources(graph, ref)
        for address in weight.addresses
    }


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_recorded_layers_are_all_that_forward_uses(name: str):
    model = on_meta(name)
    family = REGISTRY.claim(model)
    run = rcnn_forward if family is detection.RCNN else dense_forward
    assert example_for(family, model).forward is run
    graph = surgery.record(model, registry=REGISTRY, train=True)
    used = {a for node in graph.nodes for addresses in node.parameters for a in addresses}
    assert {address for address, _ in model.named_parameters()} <= used
    assert any("forward itself was not recorded" in spot for spot in graph.blind_spots)


def test_the_callers_images_are_run_through_the_layers_as_well():
    model = on_meta("retinanet_resnet50_fpn")
    heads = surgery.find_heads(model, ([torch.rand(3, 50, 70)],), registry=REGISTRY)
    assert [head.num_classes for head in heads] == [91]


def test_new_layers_start_as_the_architecture_draws_them():
    model = RetinaNet(trunk(), 91, anchor_generator=anchors())
    fresh = model.head.classification_head.cls_logits.bias.detach().clone()

    def new(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        surgery.replace_head(model, 80, registry=REGISTRY, generator=generator)
        return model.head.classification_head.cls_logits.weight.detach().clone()

    first, again, other = new(3), new(3), new(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.01, rel=0.05)
    bias = model.head.classification_head.cls_logits.bias
    assert torch.equal(bias, fresh[:1].expand_as(bias))
    surgery.replace_head(model, 80, registry=REGISTRY, init="zeros")
    assert not model.head.classification_head.cls_logits.bias.any()


COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def test_rows_of_boxes_and_masks_carry_over_by_the_names_of_a_weights_entry():
    model = tiny("mask")
    surgery.replace_head(model, 91, registry=REGISTRY)
    old = {address: p.detach().clone() for address, p in model.named_parameters()}
    names = ["__background__", "zebra", "spoon", "person"]
    outcome = surgery.replace_head(
        model,
        classes=names,
        keep="all",
        old_classes=FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        registry=REGISTRY,
    )
    zebra, spoon, person = (COCO.index(name) for name in names[1:])
    for address, rows in ((SCORE, 1), (BOXES, 4), (MASKS, 1)):
        for kind in ("weight", "bias"):
            before = old[f"{address}.{kind}"].unflatten(0, (-1, rows))
            after = outcome.new[f"{address}.{kind}"].detach().unflatten(0, (-1, rows))
            assert torch.equal(after, before[[0, zebra, spoon, person]])


@pytest.mark.parametrize("name", ["retinanet", "ssd", "ssdlite", "fcos"])
def test_rows_of_every_anchor_carry_over_and_give_the_same_scores(name: str):
    model = tiny(name).eval()
    batch = images()
    with torch.no_grad():
        before = dense_forward(model, batch)["scores"]
        surgery.replace_head(model, 5, keep={1: 7, 3: 8, 4: [2, 6]}, registry=REGISTRY)
        after = dense_forward(model, batch)["scores"]
    assert after.shape == (*before.shape[:2], 5)
    torch.testing.assert_close(after[..., 1], before[..., 7])
    torch.testing.assert_close(after[..., 3], before[..., 8])
    torch.testing.assert_close(after[..., 4], before[..., [2, 6]].mean(-1))


def test_names_that_stand_for_several_classes_want_indices():
    with pytest.raises(ArgumentError, match="10 old classes have this name") as caught:
        surgery.replace_head(
            on_meta("fasterrcnn_resnet50_fpn"),
            classes=["__background__", "thing"],
            keep={"thing": "N/A"},
            old_classes=COCO,
            registry=REGISTRY,
        )
    assert f"keep={{...: {COCO.index('N/A')}}}" in caught.value.fix


def test_class_0_is_the_background():
    model = tiny("ssdlite")
    with pytest.raises(ArgumentError, match="its name is that of a thing") as caught:
        surgery.replace_head(model, classes=["cat", "dog"], registry=REGISTRY)
    assert "['__background__', 'cat', 'dog']" in caught.value.fix
    for wrong in (["cat", "__background__"], ["cat", "background", "dog"], ["cat"]):
        with pytest.raises(ArgumentError, match="its name is that of a thing") as caught:
            surgery.replace_head(model, classes=wrong, registry=REGISTRY)
        pasted = ast.literal_eval(caught.value.fix.removeprefix("classes="))
        assert set(wrong) <= set(pasted)
        surgery.replace_head(model, classes=pasted, registry=REGISTRY).undo()
    with pytest.raises(ArgumentError, match="nothing would be left to detect"):
        surgery.replace_head(model, 1, registry=REGISTRY)
    for first in ("__background__", "background", "_Background_"):
        surgery.replace_head(model, classes=[first, "cat"], registry=REGISTRY).undo()


def test_the_number_of_keypoints_is_an_operation_of_its_own():
    model = tiny("keypoint")
    before = state_of(model, process=False)
    surgery.replace_keypoints(model, 5, registry=REGISTRY).undo()
    assert differences(before, state_of(model, process=False)) == []
    names = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]
    layer = model.get_submodule(KEYPOINTS)
    old = layer.weight.detach().clone()
    keep = {0: names.index("nose"), 1: names.index("left_wrist")}
    outcome = surgery.replace_keypoints(model, 5, keep=keep, registry=REGISTRY)
    assert set(outcome.new) == {f"{KEYPOINTS}.weight", f"{KEYPOINTS}.bias"}
    assert (layer.out_channels, model.roi_heads.keypoint_predictor.out_channels) == (5, 5)
    assert torch.equal(layer.weight[:, :2].detach(), old[:, list(keep.values())])
    assert not layer.bias.any()
    losses = model(images(), targets(model, range(1, 2)))
    sum(losses.values()).backward()
    assert layer.weight.grad.any()
    with torch.no_grad():
        found = model.eval()(images())
    assert all(each["keypoints"].shape[1:] == (5, 3) for each in found)


def test_keypoints_stay_where_classes_change_and_the_other_way_round():
    model = on_meta("keypointrcnn_resnet50_fpn")
    surgery.replace_head(model, 3, registry=REGISTRY)
    assert model.get_submodule(KEYPOINTS).out_channels == 17
    surgery.replace_keypoints(model, 4, registry=REGISTRY)
    assert model.get_submodule(SCORE).out_features == 3
    with pytest.raises(ArgumentError, match="makes keypoints, and no classes"):
        surgery.replace_head(model, 4, heads=KEYPOINTS, registry=REGISTRY)
    with pytest.raises(NoHeadError, match="known to make keypoints"):
        surgery.replace_keypoints(on_meta("fcos_resnet50_fpn"), 4, registry=REGISTRY)
    with pytest.raises(ArgumentError, match="at least 1"):
        surgery.replace_keypoints(model, 0, registry=REGISTRY)


def test_what_follows_cannot_be_asked_for():
    model = on_meta("fasterrcnn_resnet50_fpn")
    with pytest.raises(ArgumentError, match="follows other heads") as caught:
        surgery.replace_head(model, 4, heads=BOXES, registry=REGISTRY)
    assert SCORE in caught.value.fix
    outcome = surgery.replace_head(model, 4, heads="roi_heads.box_predictor", registry=REGISTRY)
    assert outcome.new[f"{BOXES}.weight"].shape == (16, 1024)


def test_one_of_the_heads_of_one_output_does_not_change_alone():
    model = on_meta("ssd300_vgg16")
    with pytest.raises(PlanError):
        surgery.replace_head(
            model, 4, heads="head.classification_head.module_list.0", registry=REGISTRY
        )


def test_hidden_layers_go_before_the_scores_alone():
    model = tiny("faster")
    surgery.replace_head(model, 4, hidden=(32,), registry=REGISTRY)
    assert isinstance(model.get_submodule(SCORE), nn.Sequential)
    assert model.get_submodule(BOXES).out_features == 16
    losses = model(images(), targets(model, range(1, 4)))
    assert bool(torch.isfinite(sum(losses.values())))
    deeper = tiny("retinanet")
    surgery.replace_head(deeper, 4, hidden=(32,), dropout=0.1, registry=REGISTRY)
    assert bool(torch.isfinite(sum(deeper(images(), targets(deeper, range(1, 4))).values())))


def test_features_cannot_come_out_of_a_detector_and_the_remedy_works():
    model = on_meta("retinanet_resnet50_fpn")
    with pytest.raises(PlanError, match="no features could come out") as caught:
        surgery.remove_head(model, registry=REGISTRY)
    assert "model.backbone(images)" in caught.value.fix


def test_all_but_the_heads_freezes_what_makes_no_classes():
    model = on_meta("maskrcnn_resnet50_fpn")
    surgery.freeze(model, except_="heads", registry=REGISTRY)
    left = {
        address.rpartition(".")[0] for address, p in model.named_parameters() if p.requires_grad
    }
    assert left == {SCORE, BOXES, MASKS}


def test_a_detector_that_is_a_part_is_named_where_the_whole_shows_no_head():
    model = nn.Sequential(tiny("faster"))
    with pytest.raises(NoHeadError, match="no layer") as caught:
        surgery.replace_head(model, 5, example=(images(),), registry=REGISTRY)
    assert "model.get_submodule('0')" in caught.value.fix
    surgery.replace_head(model.get_submodule("0"), 5, registry=REGISTRY)


@pytest.mark.parametrize("name", TINY)
def test_a_backbone_of_a_users_own_is_one_stage(name: str):
    model = tiny(name)
    surgery.freeze(model, stages=1, registry=REGISTRY)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for n, p in model.named_parameters() if "backbone" not in n)


def test_a_detector_inside_another_model_brings_its_claims_along():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = on_meta("fasterrcnn_resnet50_fpn")

        def forward(self, pictures: list[torch.Tensor]) -> torch.Tensor:
            return rcnn_forward(self.detector, pictures)

    model = Outer()
    outcome = surgery.replace_head(model, 5, example=(images(),), registry=REGISTRY)
    assert outcome.new[f"detector.{BOXES}.weight"].shape == (20, 1024)


def test_a_subclass_of_a_users_own_is_claimed_and_may_be_claimed_better():
    class Mine(type(on_meta("fcos_resnet50_fpn"))):  # type: ignore[misc]
        pass

    model = on_meta("fcos_resnet50_fpn")
    model.__class__ = Mine
    assert surgery.find_heads(model, registry=REGISTRY)[0].num_classes == 91
    name = f"{Mine.__module__}.{Mine.__qualname__}"
    better = Family(
        "mine",
        (name,),
        example=detection.DENSE.example,
        heads=(HeadClaim("head.classification_head.cls_logits"),),
    )
    heads = surgery.find_heads(model, registry=Registry.of(*FAMILIES, better))
    assert [head.background for head in heads] == [""]
