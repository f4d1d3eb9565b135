"""Keypoints are counted, named and kept like classes, and are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
)

import surgery
from surgery.errors import ArgumentError
from surgery.families import Family, HeadClaim
from surgery.families.registry import Registry
from surgery.operations.names import remember, remembered

ENTRY = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
NAMES = ENTRY.meta["keypoint_names"]
FEATURES = 6


class Pose(nn.Module):
    """As many classes as keypoints, and the names of the classes in the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = len(NAMES)
        self.class_names = [f"kind {index}" for index in range(len(NAMES))]
        self.scores = nn.Linear(FEATURES, len(NAMES))
        self.points = nn.Linear(FEATURES, len(NAMES))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.scores(x), "points": self.points(x)}


FAMILY = Family(
    "pose",
    (f"{__name__}.Pose",),
    example=(2, FEATURES),
    heads=(HeadClaim("scores"), HeadClaim("points", "keypoints")),
)
REGISTRY = Registry.of(FAMILY)


@pytest.mark.parametrize("old", [ENTRY, NAMES, tuple(NAMES)], ids=["entry", "list", "tuple"])
@pytest.mark.parametrize("keep", ["all", {"left_eye": "left_eye", 1: "nose"}])
def test_names_say_which_keypoints_stay(old: object, keep: object):
    model = Pose()
    before = model.points.weight.detach().clone()
    outcome = surgery.replace_keypoints(
        model, keypoints=["left_eye", "nose", "tail"], keep=keep, old_keypoints=old,
        registry=REGISTRY,
    )  # fmt: skip
    kept = [NAMES.index("left_eye"), NAMES.index("nose")]
    assert torch.equal(model.points.weight[:2], before[kept])
    assert model.points.out_features == 3
    assert model.scores.out_features == model.num_classes == len(model.class_names) == len(NAMES)
    outcome.undo()
    assert torch.equal(model.points.weight, before)


def test_names_of_classes_are_never_those_of_keypoints():
    model = Pose()
    remember(model, NAMES)
    assert remembered(model) == tuple(NAMES)
    with pytest.raises(ArgumentError, match="no old keypoint has it"):
        surgery.replace_keypoints(model, 3, keep={0: "nose"}, registry=REGISTRY)
    with pytest.raises(ArgumentError, match="no old keypoint has it"):
        surgery.replace_keypoints(model, 3, keep={0: "kind 1"}, registry=REGISTRY)
    before = model.points.weight.detach().clone()
    outcome = surgery.replace_keypoints(model, 3, keep="all", registry=REGISTRY)
    assert torch.equal(model.points.weight, before[:3])
    assert remembered(model) == tuple(NAMES)
    outcome.undo()
    assert remembered(model) == tuple(NAMES)


@pytest.mark.parametrize(
    ("arguments", "says", "where", "fix"),
    [
        ({}, "how many keypoints", "num_keypoints", "surgery.replace_keypoints(model, 7)"),
        ({"num_keypoints": 0}, "number of keypoints", "num_keypoints", "replace_keypoints(model"),
        ({"keypoints": "nose"}, "names of the keypoints", "keypoints", "keypoints=['nose'"),
        ({"keypoints": ["nose", "nose"]}, "every keypoint", "keypoints", "leave keypoints out"),
        ({"num_keypoints": 2, "keypoints": ["nose"]}, "disagree", "num_keypoints, keypoints", ""),
        ({"num_keypoints": 3, "keep": {0: "nose"}}, "no old keypoint", "keep", "old_keypoints=["),
        ({"keypoints": ["nose"], "keep": "all"}, "old keypoints", "keep", "old_keypoints=["),
        (
            {"num_keypoints": 1, "keep": "all", "old_keypoints": ENTRY},
            "new keypoints have no names",
            "keep",
            "keypoints=[",
        ),
        (
            {"num_keypoints": 1, "keep": {0: "elbow"}, "old_keypoints": ENTRY},
            "no old keypoint",
            "keep",
            "old_keypoints=[",
        ),
        ({"num_keypoints": 1, "old_keypoints": NAMES[:3]}, "as many old", "old_keypoints", ""),
        ({"num_keypoints": 1, "old_keypoints": "nose"}, "names of the old", "old_keypoints", ""),
        (
            {"num_keypoints": 1, "old_keypoints": FasterRCNN_ResNet50_FPN_Weights.COCO_V1},
            "names of the old keypoints",
            "old_keypoints",
            "old_keypoints=[",
        ),
        ({"num_keypoints": 1, "keep": [0]}, "which old keypoints", "keep", "replace_keypoints("),
    ],
)
def test_errors_speak_of_keypoints_and_of_arguments_that_there_are(
    arguments: dict, says: str, where: str, fix: str
):
    model = Pose()
    weight = model.points.weight
    with pytest.raises(ArgumentError, match=says) as caught:
        surgery.replace_keypoints(model, registry=REGISTRY, **arguments)
    assert caught.value.where.startswith(where)
    assert fix in caught.value.fix
    assert "class" not in str(caught.value)
    assert model.points.weight is weight


def test_names_of_old_keypoints_that_nothing_uses_are_said():
    with_them = surgery.replace_keypoints(Pose(), 3, old_keypoints=ENTRY, registry=REGISTRY)
    notes = [note for note in with_them.plan.notes if "old_keypoints" in note]
    assert notes == ["old_keypoints is not used: no keypoint stays without keep"]
