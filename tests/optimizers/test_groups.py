"""Groups of parameters: each exactly once, rates and decay where they belong."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery_plugins.resnet import FAMILY as RESNET
from surgery_plugins.vision_transformer import FAMILY as VISION_TRANSFORMER
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.families import Family, HeadClaim
from surgery.families.registry import Registry
from surgery.operations.attached import Headed
from tests.optimizers.training import NONE, batches, network, train
from tests.strategies import HEADED, Hostile, module_trees

EXAMPLE = torch.zeros(2, 8)


def placed(groups: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The group of every parameter, which must be one."""
    found: dict[int, dict[str, Any]] = {}
    for group in groups:
        assert len(group["params"]) == len(group["param_names"]) > 0
        for each in group["params"]:
            assert id(each) not in found
            found[id(each)] = group
    return found


@settings(max_examples=25)
@given(model=module_trees(), frozen=st.booleans(), vectors=st.booleans())
def test_each_parameter_is_in_one_group_once(model: nn.Module, frozen: bool, vectors: bool):
    groups = surgery.parameter_groups(
        model, weight_decay=0.1, frozen=frozen, decay_vectors=vectors, registry=NONE
    )
    where = placed(groups)
    wanted = [p for p in model.parameters() if frozen or p.requires_grad]
    assert where.keys() == {id(each) for each in wanted}
    places = {id(p): name for name, p in model.named_parameters()}
    for each in wanted:
        group = where[id(each)]
        vector = each.dim() <= 1 or places[id(each)].endswith("bias")
        assert (group["weight_decay"] == 0) is (vector and not vectors)
    for group in groups:
        assert [places[id(each)] for each in group["params"]] == group["param_names"]


@pytest.mark.parametrize("hostile", HEADED, ids=lambda hostile: hostile.name)
def test_each_parameter_has_one_depth(hostile: Hostile):
    model = hostile.build()
    groups = surgery.parameter_groups(
        model,
        lr=1.0,
        layer_decay=0.5,
        layers=4,
        frozen=True,
        example=hostile.example(),
        registry=NONE,
    )
    assert placed(groups).keys() == {id(each) for each in model.parameters()}
    scales = [group["scale"] for group in groups]
    assert scales == sorted(scales)
    assert scales[-1:] in ([1.0], [])


def test_depth_follows_the_graph_and_not_the_order_of_definition():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(16, 5), nn.Linear(8, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    groups = surgery.parameter_groups(
        Backwards(), lr=1.0, layer_decay=0.5, example=EXAMPLE, registry=NONE
    )
    assert [(group["param_names"], group["lr"]) for group in groups] == [
        (["first.bias"], 0.5),
        (["first.weight"], 0.5),
        (["last.bias"], 1.0),
        (["last.weight"], 1.0),
    ]


@pytest.mark.parametrize("wrapped", [False, True])
def test_stages_are_the_family_s(wrapped: bool):
    with torch.device("meta"):
        model: nn.Module = torchvision.models.resnet18()
    groups = surgery.parameter_groups(
        nn.DataParallel(model) if wrapped else model,
        lr=0.1,
        layer_decay=0.5,
        registry=Registry.of(RESNET),
    )
    scales = {group["stage"]: group["scale"] for group in groups}
    assert scales == {
        "stem": 0.5**5,
        "layer1": 0.5**4,
        "layer2": 0.5**3,
        "layer3": 0.5**2,
        "layer4": 0.5,
        "head": 1.0,
    }
    assert placed(groups).keys() == {id(each) for each in model.parameters()}
    assert all(name in dict(model.named_parameters()) for g in groups for name in g["param_names"])


def test_blocks_are_finer_than_stages_and_the_rest_goes_with_the_head():
    family = Family(
        "net",
        ("torch.nn.modules.container.Sequential",),
        stem=("0", "1"),
        stages=(("3",),),
        blocks=(("0",), ("1",), ("3.weight",)),
        heads=(HeadClaim("4"),),
    )
    registry = Registry.of(family)
    for model in (network(), nn.DataParallel(network()), Headed(network(), nn.Linear(5, 3), "")):
        groups = surgery.parameter_groups(
            model, lr=1.0, layer_decay=0.5, layers="blocks", registry=registry
        )
        assert placed(groups).keys() == {id(each) for each in model.parameters()}
        rates = {
            name.removeprefix("backbone."): group["lr"]
            for group in groups
            for name in group["param_names"]
        }
        expected = {"0.weight": 0.125, "0.bias": 0.125, "1.weight": 0.25, "1.bias": 0.25}
        expected |= {"3.weight": 0.5, "3.bias": 1.0, "4.weight": 1.0, "4.bias": 1.0}
        assert expected.items() <= rates.items()


@pytest.mark.parametrize("registry", [NONE, Registry.of(RESNET)], ids=["no-plugin", "no-blocks"])
def test_blocks_that_nobody_knows_are_refused(registry: Registry):
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    for asked in (
        lambda: surgery.parameter_groups(
            model, lr=1.0, layer_decay=0.5, layers="blocks", registry=registry
        ),
        lambda: surgery.unfreezing(model, layers="blocks", registry=registry),
    ):
        with pytest.raises(ArgumentError, match="no plugin knows the blocks") as error:
            asked()
        assert "layers=12" in str(error.value.fix)


def test_rates_equal_those_of_the_field():
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    blocks = tuple((f"blocks.{n}",) for n in range(11))
    family = Family(
        "field",
        ("timm.models.vision_transformer.VisionTransformer",),
        stem=("cls_token", "pos_embed", "patch_embed"),
        stages=(*blocks, ("blocks.11", "norm")),
        heads=(HeadClaim("head"),),
    )
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    theirs = {
        id(each): (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            model,
            weight_decay=0.05,
            no_weight_decay_list=model.no_weight_decay(),
            layer_decay=0.65,
        )
        for each in group["params"]
    }
    ours = surgery.parameter_groups(
        model, lr=1.0, layer_decay=0.65, weight_decay=0.05, registry=Registry.of(family)
    )
    assert {
        key: (group["lr"], group["weight_decay"]) for key, group in placed(ours).items()
    } == theirs


def test_what_the_model_or_the_caller_lists_goes_without_decay():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    registry = Registry.of(VISION_TRANSFORMER)
    model.no_weight_decay = lambda: {"class_token", "no_such"}
    groups = surgery.parameter_groups(
        model, weight_decay=0.1, no_weight_decay="encoder.pos*", registry=registry
    )
    where = placed(groups)
    for each in (model.class_token, model.encoder.pos_embedding):
        assert where[id(each)]["weight_decay"] == 0
    assert where[id(model.conv_proj.weight)]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    "said",
    [
        ["0.weight"],
        {"0.weight": "why"},
        "0.weight",
        lambda: {"0.w*"},
        lambda: "0.weight",
    ],
    ids=itertools.count(),
)
def test_a_model_lists_what_goes_without_decay_in_one_way_or_another(said: Any):
    model = network()
    model.no_weight_decay = said
    where = placed(surgery.parameter_groups(model, weight_decay=0.1, registry=NONE))
    assert where[id(model[0].weight)]["weight_decay"] == 0
    assert where[id(model[3].weight)]["weight_decay"] == 0.1


def test_a_model_that_lists_nothing_or_fails_to():
    model = network()
    for nothing in (None, lambda: None):
        model.no_weight_decay = nothing
        assert len(surgery.parameter_groups(model, weight_decay=0.1, registry=NONE)) == 2
    for wrong in (lambda name: [name], True, lambda: 3):
        model.no_weight_decay = wrong
        with pytest.raises(ArgumentError, match="does not say") as error:
            surgery.parameter_groups(model, weight_decay=0.1, registry=NONE)
        assert error.value.where == "Sequential.no_weight_decay"


OPTIMIZERS = [
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Adafactor,
]


@pytest.mark.parametrize("number", range(len(OPTIMIZERS)))
def test_any_optimizer_takes_them_and_resumes_by_name(number: int):
    model = network()
    settings: dict[str, Any] = {"lr": 0.01, "layer_decay": 0.5, "weight_decay": 0.1}
    made = surgery.parameter_groups(model, **settings, example=EXAMPLE, registry=NONE)
    optimizer = OPTIMIZERS[number](made)
    train(model, optimizer, batches(2))
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(model)
    again = OPTIMIZERS[number](
        surgery.parameter_groups(other, **settings, example=EXAMPLE, registry=NONE)
    )
    again.load_state_dict(saved)
    assert [g["param_names"] for g in again.state_dict()["param_groups"]] == [
        g["param_names"] for g in saved["param_groups"]
    ]
    train(model, optimizer, batches(2, seed=4))
    train(other, again, batches(2, seed=4))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_frozen_parameters_are_left_out_or_taken_in():
    model = network()
    surgery.freeze(model, ["0", "1"], registry=NONE)
    assert len(placed(surgery.parameter_groups(model, registry=NONE))) == 4
    assert len(placed(surgery.parameter_groups(model, frozen=True, registry=NONE))) == 8
    surgery.freeze(model, registry=NONE)
    none = surgery.parameter_groups(model, registry=NONE)
    assert list(none) == []
    assert "frozen=True" in none.notes[0]
    assert surgery.parameter_groups(nn.ReLU(), registry=NONE).notes == ()


def test_parameters_that_no_recording_uses_are_last_and_said():
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.zeros(3, 3)))
    groups = surgery.parameter_groups(
        model, lr=1.0, layer_decay=0.5, example=EXAMPLE, registry=NONE
    )
    assert placed(groups)[id(model.unused)]["scale"] == 1.0
    assert any("unused" in note for note in groups.notes)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": "0.1"}, "lr"),
        ({"lr": True}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"lr": 0.1, "layer_decay": 0.0}, "layer_decay"),
        ({"lr": 0.1, "layer_decay": 1.5}, "layer_decay"),
        ({"layer_decay": 0.5}, "layer_decay without lr"),
        ({"lr": 0.1, "layer_decay": 0.5, "layers": 0}, "layers"),
        ({"lr": 0.1, "layer_decay": 0.5, "layers": "block"}, "layers"),
        ({"no_weight_decay": "nowhere"}, "no_weight_decay='nowhere'"),
    ],
    ids=itertools.count(),
)
def test_wrong_arguments(arguments: dict[str, Any], where: str):
    with pytest.raises(ArgumentError) as error:
        surgery.parameter_groups(network(), **arguments, example=EXAMPLE, registry=NONE)
    assert error.value.where == where
    assert error.value.fix
