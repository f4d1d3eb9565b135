"""Real checkpoints and the models they are for: which key goes where, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from surgery.errors import ArgumentError, CoverageError, PlanError
from surgery.weights.match import match
from surgery.weights.memory import describe
from surgery.weights.value import TensorInfo

Infos = Mapping[str, TensorInfo]
Names = Callable[[str], str]


def infos(build: Callable[..., nn.Module], **options: object) -> dict[str, TensorInfo]:
    with torch.device("meta"):
        return describe(build(**options).state_dict(keep_vars=True))


def named(source: Infos, name: Names) -> dict[str, TensorInfo]:
    return {name(key): info for key, info in source.items()}


RESNET = infos(torchvision.models.resnet18)


class Lit(nn.Module):
    """As Lightning has it: the model inside, and a loss with a weight of its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("loss_weight", torch.ones(3))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # type: ignore[return-value]


def inside(model: nn.Module) -> nn.Module:
    """Wrapped in the middle, as activation checkpointing and FSDP do it."""
    model.layer2 = checkpoint_wrapper(model.layer2)  # type: ignore[arg-type]
    model.layer3 = torch.compile(model.layer3)  # type: ignore[assignment]
    model.layer4 = nn.DataParallel(model.layer4)  # type: ignore[arg-type]
    return model


WRAPS: list[Callable[[nn.Module], nn.Module]] = [
    nn.DataParallel,
    compiled,
    lambda model: compiled(nn.DataParallel(model)),
    lambda model: nn.DataParallel(compiled(model)),
    Lit,
    lambda model: Lit(compiled(model)),
    inside,
    lambda model: nn.DataParallel(Lit(inside(model))),
    lambda model: nn.ModuleDict({"backbone": model}),
    lambda model: nn.ModuleDict({"net": nn.ModuleDict({"trunk": model})}),
]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_state_dict_finds_its_model_through_any_wrapper(
    wrap: Callable[..., nn.Module], name: str
):
    build = getattr(torchvision.models, name)
    if wrap in (WRAPS[6], WRAPS[7]) and name != "resnet18":
        return
    with torch.device("meta"):
        model = build()
        plain = describe(model.state_dict())
        state = wrap(build()).state_dict()
    by_wrapped = [key for key in state if "loss_weight" not in key]
    wrapped = describe(state)
    for matching, pairs in (
        (match(plain, wrapped), dict(zip(plain, by_wrapped, strict=True))),
        (match(wrapped, plain), dict(zip(by_wrapped, plain, strict=True))),
    ):
        assert dict(matching.pairs) == pairs
        assert matching.undone
        assert {*matching.missing, *matching.unexpected} == {*wrapped} - {*by_wrapped}


def test_a_model_and_its_own_state_dict_need_nothing_undone():
    matching = match(RESNET, RESNET)
    assert list(matching.pairs.items()) == [(key, key) for key in RESNET]
    assert matching.undone == ""
    assert matching.warning() is None


def test_what_is_called_as_a_wrapper_in_the_model_itself_stays():
    own = infos(
        lambda: nn.ModuleDict(
            {"model": nn.Linear(4, 4), "module": nn.Linear(4, 4), "backbone": nn.Linear(4, 4)}
        )
    )
    assert dict(match(own, own).pairs) == {key: key for key in own}
    wrapped = named(own, "module.{}".format)
    assert dict(match(own, wrapped).pairs) == {key: f"module.{key}" for key in own}


def test_a_name_as_it_is_wins_over_a_rewritten_one():
    source = {**named(RESNET, "module.{}".format), "fc.weight": RESNET["fc.weight"]}
    matching = match(RESNET, source)
    assert matching.pairs["fc.weight"] == "fc.weight"
    assert matching.pairs["fc.bias"] == "module.fc.bias"
    assert matching.unexpected == ("module.fc.weight",)


def test_two_keys_for_one_place_are_refused_by_name():
    source = {
        **named(RESNET, "module.{}".format),
        "layer1._orig_mod.0.conv1.weight": RESNET["layer1.0.conv1.weight"],
    }
    with pytest.raises(PlanError, match="two keys of the source") as caught:
        match(RESNET, source)
    assert "'module.layer1.0.conv1.weight'" in str(caught.value)
    assert "'layer1._orig_mod.0.conv1.weight'" in str(caught.value)
    dropped = match(RESNET, source, drop="layer1._orig_mod")
    assert dropped.pairs["layer1.0.conv1.weight"] == "module.layer1.0.conv1.weight"


def test_student_and_teacher_are_for_the_caller_to_choose():
    both = {**named(RESNET, "student.{}".format), **named(RESNET, "teacher.{}".format)}
    with pytest.raises(PlanError, match="equally well") as caught:
        match(RESNET, both)
    assert "student." in str(caught.value)
    assert "teacher." in str(caught.value)
    matching = match(RESNET, both, drop="teacher")
    assert set(matching.pairs.values()) == {f"student.{key}" for key in RESNET}
    assert set(matching.dropped_sources) == {f"teacher.{key}" for key in RESNET}
    assert matching.dropped == {}
    assert matching.coverage.source == 1
    with pytest.raises(PlanError, match="two places"):
        match(both, RESNET)


def test_googlenet_of_five_classes_from_a_thousand():
    model = infos(torchvision.models.googlenet, num_classes=5, init_weights=False)
    source = infos(torchvision.models.googlenet, init_weights=False)
    matching = match(model, source)
    heads = [
        f"{layer}.{kind}" for layer in ("aux1.fc2", "aux2.fc2", "fc") for kind in ("weight", "bias")
    ]
    assert [item.key for item in matching.mismatched] == heads
    assert {item.policy for item in matching.mismatched} == {"skip"}
    assert matching.missing == matching.unexpected == ()
    assert matching.pairs.keys() == model.keys() - set(heads)
    assert "6 tensors" in (matching.warning() or "")


def test_a_file_with_auxiliary_heads_for_a_model_without():
    model = infos(torchvision.models.googlenet, aux_logits=False, init_weights=False)
    source = infos(torchvision.models.googlenet, init_weights=False)
    matching = match(model, source)
    assert matching.pairs.keys() == model.keys()
    assert {key.split(".")[0] for key in matching.unexpected} == {"aux1", "aux2"}
    assert matching.warning() is None


def test_a_trunk_fills_little_of_a_model_and_is_welcome():
    model = infos(torchvision.models.vgg16)
    with torch.device("meta"):
        source = describe(torchvision.models.vgg16().features.state_dict())
    matching = match(model, source)
    assert matching.model_prefix == "features."
    assert (matching.coverage.source, matching.coverage.model) == (1, 26 / 32)
    loaded = sum(model[key].nbytes for key in matching.pairs)
    assert round(100 * loaded / sum(info.nbytes for info in model.values())) == 11
    back = match(source, model)
    assert back.source_prefix == "features."
    assert back.coverage.model == 1


def test_craft_of_easyocr_by_the_callers_rename():
    model = infos(torchvision.models.vgg16_bn)
    slices = {1: range(12), 2: range(12, 19), 3: range(19, 29), 4: range(29, 39)}
    place = {index: number for number, indices in slices.items() for index in indices}
    source = {
        f"module.basenet.slice{place[index]}.{index}.{rest}": model[f"features.{index}.{rest}"]
        for _, index, rest in (key.split(".", 2) for key in model if key.startswith("features."))
        for index in [int(index)]
        if index in place
    }
    source["module.conv_cls.0.weight"] = TensorInfo((32, 32, 3, 3), torch.float32, 36864)
    matching = match(model, source, rename=[(r"^module\.basenet\.slice\d\.", "features.")])
    assert matching.pairs["features.24.weight"] == "module.basenet.slice3.24.weight"
    assert matching.unexpected == ("module.conv_cls.0.weight",)
    assert len(matching.pairs) == len(source) - 1


def test_a_foreign_checkpoint_is_refused_with_what_is_closest():
    source = infos(torchvision.models.densenet121)
    with pytest.raises(CoverageError) as caught:
        match(RESNET, source)
    text = str(caught.value)
    assert "of 102 tensors of the model" in text
    assert "closest to" in text
    assert f"of {len(source)} of the source" in text


@pytest.mark.parametrize("source", [{}, {"x": TensorInfo((7, 7), torch.float32, 196)}])
def test_nothing_that_fits_is_refused_also_where_nothing_is_close(source: dict[str, TensorInfo]):
    with pytest.raises(CoverageError, match="too little"):
        match(RESNET, source)
    assert match(RESNET, source, min_coverage=0).pairs == {}


def test_the_number_of_tensors_decides_against_the_share_asked_for():
    half = dict(list(RESNET.items())[:51])
    matching = match(RESNET, {**half, **named(half, "other.{}".format)}, min_coverage=0.5)
    assert matching.coverage.better == 0.5
    with pytest.raises(CoverageError) as caught:
        match(RESNET, {**half, **named(half, "other.{}".format)}, min_coverage=0.51)
    assert "min_coverage=0.5 " in (caught.value.fix or "")


def test_old_files_lack_the_counters_of_batches_and_nobody_warns():
    source = {key: info for key, info in RESNET.items() if "num_batches_tracked" not in key}
    matching = match(RESNET, source)
    assert len(matching.counters) == 20
    assert matching.absent == ()
    assert matching.coverage.model == 1
    assert matching.warning() is None
    assert "missing, as in old files: bn1.num_batches_tracked" in matching.lines


def test_what_is_missing_is_one_sentence():
    source = {key: info for key, info in RESNET.items() if not key.startswith("layer4.0.")}
    source["extra\x1b[31m"] = RESNET["fc.weight"]
    matching = match(RESNET, source)
    warning = matching.warning() or ""
    assert warning.startswith(f"{len(matching.absent)} tensors (layer4.0.conv1.weight, ")
    assert "\n" not in warning
    assert "1 tensor (extra\\x1b[31m) of the source not used" in warning


@pytest.mark.parametrize(
    ("found", "expected", "lossy"),
    [
        (torch.float16, torch.float32, False),
        (torch.float64, torch.bfloat16, False),
        (torch.int64, torch.float32, False),
        (torch.float32, torch.int64, True),
        (torch.complex64, torch.float32, True),
        (torch.float32, torch.bool, True),
    ],
)
def test_another_dtype_is_converted_and_losses_are_said(
    found: torch.dtype, expected: torch.dtype, lossy: bool
):
    model, source = ({"w": TensorInfo((2,), dtype, 0)} for dtype in (expected, found))
    matching = match(model, source)
    assert matching.pairs == {"w": "w"}
    assert matching.loaded == {}
    [conversion] = matching.converted
    assert (conversion.expected, conversion.found, conversion.lossy) == (expected, found, lossy)
    assert (matching.warning() is not None) is lossy


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def test_tied_weights_in_the_model_are_loaded_once():
    state = Tied().state_dict(keep_vars=True)
    model = describe(state)
    own = match(model, model)
    assert own.pairs["embed.weight"] == "embed.weight"
    assert (own.tied, own.rivals) == ({"head.weight": "embed.weight"}, ())
    assert own.tied_sources == {"head.weight": "embed.weight"}

    separate = match(model, describe(untied(state)))
    assert separate.pairs == own.pairs
    assert separate.rivals == ("head.weight",)

    alone = {key: info for key, info in describe(untied(state)).items() if key != "embed.weight"}
    other = match(model, alone)
    assert other.pairs["head.weight"] == "head.weight"
    assert other.tied == {"embed.weight": "head.weight"}
    assert other.missing == ()


def test_a_name_that_the_source_only_mentions_is_a_name_of_its_tensor():
    state = Tied().state_dict(keep_vars=True)
    model = describe(untied(state))
    source = {key: info for key, info in describe(state).items() if key != "head.weight"}
    assert source["embed.weight"].aliases == ("head.weight",)
    matching = match(model, source)
    assert matching.pairs["head.weight"] == matching.pairs["embed.weight"] == "embed.weight"
    assert matching.source_verdicts == dict.fromkeys(source, "loaded")


def test_the_callers_rename_wins():
    source = {**RESNET, "ema.fc.weight": RESNET["fc.weight"]}
    matching = match(RESNET, source, rename={"ema.fc.weight": "fc.weight"})
    assert matching.pairs["fc.weight"] == "ema.fc.weight"
    assert matching.unexpected == ("fc.weight",)
    with pytest.raises(PlanError, match="two keys"):
        match(RESNET, source, rename=lambda key: "fc.bias" if "fc.weight" in key else key)


def test_a_rename_in_the_middle_leaves_wrappers_to_be_undone():
    source = {
        "module." + re.sub(r"\bbn1\.weight$", "bn1.gamma", key): info
        for key, info in RESNET.items()
    }
    rules = [(r"\bbn1\.gamma$", "bn1.weight")]
    matching = match(RESNET, source, rename=rules)
    assert matching.pairs.keys() == RESNET.keys()
    assert matching.pairs["bn1.weight"] == "module.bn1.gamma"


def test_a_rename_to_nothing_drops():
    matching = match(RESNET, RESNET, rename=lambda key: None if key.startswith("fc.") else key)
    assert matching.dropped_sources == ("fc.weight", "fc.bias")
    assert matching.dropped == {"fc.weight": "fc.weight", "fc.bias": "fc.bias"}
    assert matching.missing == ()
    assert matching.warning() is None


@pytest.mark.parametrize("drop", ["module.fc", "fc", "*.bias", ["module.fc.weight", "fc.bias"]])
def test_drop_knows_the_keys_of_either_side(drop: object):
    matching = match(RESNET, named(RESNET, "module.{}".format), drop=drop)
    assert matching.dropped
    assert all(
        name == f"module.{key}" and (key.startswith("fc.") or drop == "*.bias")
        for key, name in matching.dropped.items()
    )
    assert {*matching.dropped.values()} == {*matching.dropped_sources}
    assert matching.pairs.keys() | matching.dropped.keys() == RESNET.keys()
    assert matching.coverage.better == 1


WRONG: list[dict[str, object]] = [
    {"drop": "fcc"},
    {"drop": 3.5},
    {"drop": [7]},
    {"rename": {"fc.wieght": "head.weight"}},
    {"rename": [("(", "x")]},
    {"rename": [("a", r"\1")]},
    {"rename": [("a",)]},
    {"rename": "fc"},
    {"rename": 7},
    {"rename": lambda key: 7},
    {"rename": lambda key: ""},
    {"min_coverage": 50},
    {"min_coverage": -0.1},
    {"min_coverage": True},
    {"min_coverage": "half"},
    {"min_coverage": float("nan")},
    {"on_mismatch": "ignore"},
    {"on_mismatch": None},
    {"on_mismatch": {"fc": "ignore"}},
    {"on_mismatch": {"head": "skip"}},
    {"on_mismatch": {7: "skip"}},
]


@pytest.mark.parametrize("options", WRONG, ids=lambda options: "-".join(options))
def test_a_wrong_argument_is_an_error_with_a_next_step(options: dict[str, object]):
    with pytest.raises(ArgumentError) as caught:
        match(RESNET, RESNET, **options)  # type: ignore[arg-type]
    assert caught.value.fix
    assert caught.value.where
