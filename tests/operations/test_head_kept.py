"""What cannot be kept, chosen or remembered is refused, or said: no row answers for another."""

from __future__ import annotations

import pytest
import torch
from surgery_plugins import detection
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

import surgery
from surgery.errors import (
    AmbiguousHeadError,
    ArgumentError,
    ClaimContradictedError,
    PlanError,
    SurgeryError,
)
from surgery.families.registry import Registry
from surgery.operations.names import remembered
from tests.plugins.test_detection import BOXES, REGISTRY, SCORE, images, targets, tiny

NONE = Registry.of()


def headed(*layers: nn.Module, classes: int) -> nn.Sequential:
    model = nn.Sequential(*layers).eval()
    model.num_classes = classes
    return model


def replaced(model: nn.Module, size: int, example: torch.Tensor, **options: object):
    return surgery.replace_head(model, size, example=example, registry=NONE, **options)


@pytest.mark.parametrize(
    "norm", [parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["parametrized", "hooked"]
)
def test_rows_under_a_common_norm_cannot_be_kept(norm: object) -> None:
    x = torch.randn(2, 12)
    model = headed(norm(nn.Linear(12, 4)), classes=4)
    before = model(x)
    with pytest.raises(PlanError, match="norm of all its rows"):
        replaced(model, 5, x, keep={1: 2})
    assert torch.equal(model(x), before)
    replaced(model, 5, x)


def test_rows_of_a_grouped_convolution_stay_in_their_group_or_are_refused() -> None:
    x = torch.randn(2, 8, 3, 3)
    model = headed(nn.Conv2d(8, 4, 1, groups=2), classes=4)
    with pytest.raises(PlanError, match="class 2 reads one group of features, and as class 2"):
        replaced(model, 8, x, keep={i: i for i in range(4)})
    before = model(x)
    replaced(model, 8, x, keep={0: 0, 1: 1, 4: 2, 5: 3})
    torch.testing.assert_close(model(x)[:, [0, 1, 4, 5]], before)


def test_merged_classes_are_refused_where_each_is_scaled_by_itself() -> None:
    x = torch.randn(3, 8)
    model = headed(parametrizations.weight_norm(nn.Linear(8, 6)), classes=6)
    with torch.no_grad():
        model[0].parametrizations.weight.original0.uniform_(0.2, 5)
    with pytest.raises(PlanError, match="no mean of theirs"):
        replaced(model, 2, x, keep={0: [2, 4]})
    before = model(x)
    replaced(model, 2, x, keep={0: 4})
    torch.testing.assert_close(model(x)[:, 0], before[:, 4])
    pruned = headed(prune.random_unstructured(nn.Linear(8, 6), "weight", 0.5), classes=6)
    with pytest.raises(PlanError, match="no mean of theirs"):
        replaced(pruned, 2, x, keep={0: [2, 4]})
    replaced(pruned, 2, x, keep={0: 2})


def test_merged_classes_answer_with_the_mean_where_nothing_scales_them() -> None:
    x = torch.randn(3, 8)
    model = headed(nn.Linear(8, 6), nn.BatchNorm1d(6), classes=6)
    before = model(x)
    replaced(model, 2, x, keep={0: [2, 4], 1: 5}, heads="0")
    torch.testing.assert_close(model(x), torch.stack([before[:, [2, 4]].mean(1), before[:, 5]], 1))


@pytest.mark.parametrize("behind", [nn.LayerNorm(4), nn.Softmax(1), nn.GroupNorm(1, 4)])
def test_kept_classes_that_are_normalised_together_are_said_to_move(behind: nn.Module) -> None:
    x = torch.randn(3, 8)
    model = headed(nn.Linear(8, 4), behind, classes=4)
    outcome = replaced(model, 2, x, keep={0: 2}, heads="0")
    assert any("takes all classes of '0' together" in note for note in outcome.plan.notes)
    assert not any("takes all" in note for note in replaced(model, 3, x, heads="0").plan.notes)


class Boxes(nn.Module):
    """As set-based detectors are: one class more, for no object, and boxes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.num_classes = classes
        self.class_embed, self.bbox_embed = nn.Linear(8, classes + 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.class_embed(x), "boxes": self.bbox_embed(x).sigmoid()}


def test_a_number_that_is_right_by_chance_decides_nothing() -> None:
    x = torch.rand(2, 6, 8)
    with pytest.raises(AmbiguousHeadError):
        replaced(Boxes(4), 7, x)
    model = Boxes(20)
    outcome = replaced(model, 8, x, heads="class_embed")
    assert model.bbox_embed.out_features == 4
    (note,) = [note for note in outcome.plan.notes if "num_classes" in note]
    assert "says 20 and stays, where 'class_embed' made 21" in note
    assert "it should say 7" in note


class Predictor(nn.Module):
    """A box predictor of a user's own, whose layers have other names."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cls, self.reg = nn.Linear(16, classes), nn.Linear(16, 4 * classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.flatten(1)
        return self.cls(x), self.reg(x)


def test_layers_that_the_family_of_a_detector_does_not_know_are_replaced_whole_or_not() -> None:
    model = tiny("faster")
    model.roi_heads.box_predictor = Predictor(9)
    for options in ({}, {"heads": "roi_heads.box_predictor.cls"}):
        with pytest.raises(PlanError, match="would be left behind") as caught:
            surgery.replace_head(model, 7, registry=REGISTRY, **options)
        assert "surgery.replace(model, {'roi_heads.box_predictor': module})" in caught.value.fix
    surgery.replace(model, {"roi_heads.box_predictor": Predictor(7)}, registry=REGISTRY)
    losses = model(images(), targets(model, range(1, 7)))
    assert bool(torch.isfinite(sum(losses.values())))


def test_a_box_regressor_for_all_classes_alike_follows_nothing() -> None:
    model = tiny("faster")
    model.roi_heads.box_predictor.bbox_pred = nn.Linear(16, 4)
    assert [head.address for head in surgery.find_heads(model, registry=REGISTRY)] == [SCORE]
    outcome = surgery.replace_head(model, 5, registry=REGISTRY)
    assert set(outcome.new) == {f"{SCORE}.weight", f"{SCORE}.bias"}


def test_half_a_tutorial_is_told_what_does_not_agree() -> None:
    model = tiny("mask")
    model.roi_heads.box_predictor = FastRCNNPredictor(16, 2)
    with pytest.raises(ClaimContradictedError, match="and it does not") as caught:
        surgery.find_heads(model, registry=REGISTRY)
    assert "a layer with 2 outputs at model.roi_heads.mask_predictor" in caught.value.fix


def test_a_detector_of_one_kind_of_object_without_background() -> None:
    model = tiny("retinanet")
    outcome = surgery.replace_head(model, 1, registry=REGISTRY)
    assert any("count the background as class 0" in note for note in outcome.plan.notes)
    (head,) = surgery.find_heads(model, registry=REGISTRY)
    assert (head.num_classes, head.factor) == (1, 6)
    surgery.replace_head(model, classes=["cat", "dog"], registry=REGISTRY)


def test_an_initialiser_of_the_callers_own_leaves_the_bias_to_the_architecture() -> None:
    model = tiny("retinanet")
    surgery.replace_head(model, 4, init=nn.init.xavier_uniform_, registry=REGISTRY)
    bias = model.head.classification_head.cls_logits.bias
    assert torch.allclose(bias, torch.tensor(-4.59512))


def test_names_are_forgotten_with_the_layers_they_were_about() -> None:
    model = tiny("faster")
    names = ["__background__", "a", "b"]
    surgery.replace_head(model, classes=names, registry=REGISTRY)
    assert remembered(model) == tuple(names)
    model.to(torch.float64).to(torch.float32)
    assert remembered(model) == tuple(names)
    model.roi_heads.box_predictor = FastRCNNPredictor(16, 3)
    assert remembered(model) is None
    with pytest.raises(ArgumentError, match="the old classes have no names"):
        surgery.replace_head(model, classes=["__background__", "b"], keep="all", registry=REGISTRY)


def test_what_is_no_head_has_a_remedy_of_its_own() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny("faster")

        def forward(self, x: list[torch.Tensor]) -> object:
            return self.model(x)

    with pytest.raises(SurgeryError) as caught:
        surgery.replace_head(Whole().eval(), 5, example=(images(),), registry=REGISTRY)
    assert caught.value.fix == "surgery.replace_head(model.get_submodule('model'), 7)"
    assert len(str(caught.value)) < 1500
    broken = tiny("faster")
    broken.roi_heads.box_roi_pool = None
    with pytest.raises(SurgeryError) as caught:
        surgery.find_heads(broken, registry=REGISTRY)
    assert "fit each other" in caught.value.fix


def test_the_coupled_layer_is_listed_with_what_it_follows() -> None:
    heads = surgery.find_heads(tiny("faster"), registry=REGISTRY)
    assert [(head.address, head.follows) for head in heads] == [(SCORE, ()), (BOXES, (SCORE,))]
    assert heads[0].background == detection.BACKGROUND
