"""What transplant refuses, and what it says: nothing is touched then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import surgery
from surgery.errors import (
    AddressError,
    ArgumentError,
    PlanError,
    SurgeryError,
    UnsupportedModelError,
    WrappedModelError,
)
from tests.operations.state import differences, state_of
from tests.operations.test_transplant import Net, Tied, shaken


def conv(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, **settings))


class Block(nn.Module):
    """A layer with an activation that is no module."""

    def __init__(self, activation: Any, **facts: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.activation = activation
        vars(self).update(facts)

    def forward(self, x: torch.Tensor) -> Any:
        return self.activation(self.linear(x))


def attention(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.MultiheadAttention(8, **{"num_heads": 2, **settings}))


def norm(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(4, **settings))


# Pairs of layers whose tensors have the same names and shapes: donor, recipient, what is named.
UNLIKE: list[tuple[nn.Module, nn.Module, str]] = [
    (conv(), conv(stride=2), "stride"),
    (conv(), conv(padding=1), "padding"),
    (conv(), conv(dilation=2), "dilation"),
    (conv(padding=1), conv(padding=1, padding_mode="reflect"), "padding_mode"),
    (conv(padding="same"), conv(padding=1), "padding"),
    (conv(groups=2), nn.Sequential(nn.Conv2d(2, 4, 3)), "groups"),
    (conv(), nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), "class"),
    (norm(), norm(eps=1e-3), "eps"),
    (norm(), norm(momentum=0.01), "momentum"),
    (norm(), nn.Sequential(nn.SyncBatchNorm(4)), "class"),
    (attention(), attention(num_heads=4), "num_heads"),
    (attention(), attention(batch_first=True), "batch_first"),
    (attention(), attention(dropout=0.5), "dropout"),
    (Block(functional.relu), Block(functional.gelu), "activation"),
    (
        Block(partial(functional.gelu, approximate="tanh")),
        Block(partial(functional.gelu)),
        "activation",
    ),
    (Block(nn.ReLU()), Block(nn.GELU()), "activation class"),
    (Block(nn.LeakyReLU(0.1)), Block(nn.LeakyReLU(0.2)), "negative_slope"),
    (Block(functional.relu, first=True), Block(functional.relu, first=False), "first"),
    (Block(functional.relu, scale=2.0), Block(functional.relu), "scale"),
    (
        Block(functional.relu, scale=torch.ones(2)),
        Block(functional.relu, scale=torch.zeros(2)),
        "scale",
    ),
    (Block(functional.relu, sizes=[1, 2]), Block(functional.relu, sizes=[1, 3]), "sizes"),
    (Block(functional.relu, facts={"a": 1}), Block(functional.relu, facts={"a": 2}), "facts"),
    (Block(functional.relu, _hidden=1), Block(functional.relu, _hidden=2), "_hidden"),
]


@pytest.mark.parametrize(("donor", "recipient", "what"), UNLIKE)
@pytest.mark.parametrize("mapping", [None, {"": ""}, {"**": "**"}])
def test_equal_shapes_do_not_make_equal_layers(
    donor: nn.Module, recipient: nn.Module, what: str, mapping: Any
):
    donor, recipient = nn.Sequential(donor), nn.Sequential(recipient)
    before = state_of(recipient, donor)
    with pytest.raises(PlanError, match="equal shapes do not make equal layers") as caught:
        surgery.transplant(donor, recipient, mapping)
    assert what in caught.value.found
    assert not differences(before, state_of(recipient, donor))
    outcome = surgery.transplant(donor, recipient, mapping, differences="allow")
    assert any(what in note for note in outcome.plan.notes)
    outcome.undo()


@pytest.mark.parametrize(
    "make",
    [
        lambda: conv(padding=1),
        lambda: norm(),
        lambda: attention(),
        lambda: Block(functional.gelu),
        lambda: Block(partial(functional.gelu, approximate="tanh"), nan=float("nan")),
        lambda: Block(lambda x: x + 1),
        lambda: Block(nn.ReLU(inplace=torch.rand(()) > 0.5)),
        lambda: Block(torch.relu, config=object()),
        lambda: nn.utils.weight_norm(nn.Linear(3, 3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        lambda: nn.LSTM(3, 4),
        lambda: nn.TransformerEncoderLayer(8, 2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_equal_layers_are_equal(make: Callable[[], nn.Module]):
    surgery.transplant(make(), make(), {"": ""})


def test_what_one_side_lacks_is_named():
    with_bias, without = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    with pytest.raises(PlanError, match="other has not") as caught:
        surgery.transplant(with_bias, without, {"": ""})
    assert "the recipient has no bias" in caught.value.found
    with pytest.raises(PlanError, match="other has not") as caught:
        surgery.transplant(without, with_bias)
    assert "the donor has no bias" in caught.value.found
    outcome = surgery.transplant(without, with_bias, differences="allow")
    assert any("the donor has no bias" in note for note in outcome.plan.notes)
    deeper = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(PlanError) as caught:
        surgery.transplant(deeper, nn.Sequential(nn.Linear(3, 3)), {"*": "*"})
    assert "1 of the donor: the recipient has no 1" in caught.value.found


def net_on(device: str) -> Net:
    with torch.device(device):
        return Net()


def float64() -> nn.Module:
    model = Net().double()
    with torch.no_grad():
        model.stem.weight.fill_(1e300)
    return model


def complex_net() -> nn.Module:
    model = Net()
    model.stem = nn.Conv2d(3, 4, 3, dtype=torch.cfloat)
    return model


def with_sparse() -> nn.Module:
    model = Net()
    model.stem.bias = nn.Parameter(torch.ones(4).to_sparse())
    return model


class Labelled(torch.Tensor):
    """A class of tensors of its own."""


def with_subclass() -> nn.Module:
    model = Net()
    model.stem.bias = nn.Parameter(torch.ones(4).as_subclass(Labelled))
    return model


def overlapping() -> Net:
    model, memory = Net(), torch.zeros(8)
    model.stem.bias.data = memory[:4]
    model.head.bias.data = memory[3:5]
    return model


def quantised() -> nn.Module:
    from torch.ao.nn.quantized import Linear

    return nn.Sequential(Linear(4, 2))


STEM = {"stem": "stem"}
WRONG: dict[str, tuple[type[SurgeryError], Callable[[], object], str]] = {
    "no donor": (ArgumentError, lambda: surgery.transplant(3, Net()), "source"),
    "no recipient": (UnsupportedModelError, lambda: surgery.transplant(Net(), 3), "no model"),
    "a class": (UnsupportedModelError, lambda: surgery.transplant(Net(), Net), "no model"),
    "lazy donor": (
        UnsupportedModelError,
        lambda: surgery.transplant(nn.LazyLinear(3), Net()),
        "lazy",
    ),
    "wrapped recipient": (
        WrappedModelError,
        lambda: surgery.transplant(Net(), nn.DataParallel(Net())),
        "DataParallel",
    ),
    "wrapped donor that gives away": (
        WrappedModelError,
        lambda: surgery.transplant(nn.DataParallel(Net()), Net(), STEM, how="move"),
        "DataParallel",
    ),
    "match": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), match="grapf"),  # type: ignore[arg-type]
        "match",
    ),
    "how": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), how="steal"),  # type: ignore[arg-type]
        "how",
    ),
    "differences": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), differences="ok"),  # type: ignore[arg-type]
        "differences",
    ),
    "policy": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), on_mismatch="ignore"),  # type: ignore[arg-type]
        "shape",
    ),
    "a list": (ArgumentError, lambda: surgery.transplant(Net(), Net(), ["stem"]), "mapping"),
    "an empty mapping": (ArgumentError, lambda: surgery.transplant(Net(), Net(), {}), "mapping"),
    "a number": (ArgumentError, lambda: surgery.transplant(Net(), Net(), {"stem": 1}), "str"),
    "wildcards": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), {"encoder.*": "encoder"}),
        "wildcard",
    ),
    "wildcards swapped": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), {"*.**": "**.*"}),
        "wildcard",
    ),
    "donor's address": (
        AddressError,
        lambda: surgery.transplant(Net(), Net(), {"stm": "stem"}),
        "closest: stem",
    ),
    "recipient's address": (
        AddressError,
        lambda: surgery.transplant(Net(), Net(), {"stem": "steem"}),
        "closest: stem",
    ),
    "pattern": (
        AddressError,
        lambda: surgery.transplant(Net(), Net(), {"encoders.*": "encoder.*"}),
        "closest: encoder",
    ),
    "pattern without a place": (
        AddressError,
        lambda: surgery.transplant(Net(), Net(), {"encoder.*": "encoders.*"}),
        "closest: encoder.0",
    ),
    "nothing in common": (
        AddressError,
        lambda: surgery.transplant(nn.Linear(2, 2), Net()),
        "no address in common",
    ),
    "a module for a tensor": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), {"stem": "stem.weight"}),
        "module goes to a module",
    ),
    "a tensor for a module": (
        ArgumentError,
        lambda: surgery.transplant(Net(), Net(), {"stem.weight": "stem"}),
        "tensor to a tensor",
    ),
    "shapes": (
        PlanError,
        lambda: surgery.transplant(nn.ModuleDict({"head": nn.Linear(4, 7)}), Net()),
        "not by shape",
    ),
    "everything skipped": (
        PlanError,
        lambda: surgery.transplant(
            nn.ModuleDict({"head": nn.Linear(5, 7)}), Net(), on_mismatch="skip"
        ),
        "nothing arrives",
    ),
    "adapt": (
        ArgumentError,
        lambda: surgery.transplant(
            nn.ModuleDict({"head": nn.Linear(4, 7)}), Net(), on_mismatch="adapt"
        ),
        "adapted",
    ),
    "a callable that makes another shape": (
        ArgumentError,
        lambda: surgery.transplant(
            nn.ModuleDict({"head": nn.Linear(4, 7)}), Net(), on_mismatch=lambda a, t, o: t
        ),
        "does not fit",
    ),
    "a callable that makes no tensor": (
        ArgumentError,
        lambda: surgery.transplant(
            nn.ModuleDict({"head": nn.Linear(4, 7)}), Net(), on_mismatch=lambda a, t, o: 3
        ),
        "does not fit",
    ),
    "two for one place": (
        PlanError,
        lambda: surgery.transplant(
            shaken(Net()), Net(), {"encoder.0": "encoder.1", "encoder.1": "encoder.1"}
        ),
        "two different tensors",
    ),
    "two for one tied tensor": (
        PlanError,
        lambda: surgery.transplant(shaken(Tied(tie=False)), Tied()),
        "untie",
    ),
    "a donor on meta": (PlanError, lambda: surgery.transplant(net_on("meta"), Net()), "meta"),
    "a recipient on meta": (
        PlanError,
        lambda: surgery.transplant(Net(), net_on("meta")),
        "to_empty",
    ),
    "sharing across devices": (
        PlanError,
        lambda: surgery.transplant(net_on("meta"), Net(), STEM, how="share"),
        "different forms",
    ),
    "sharing across dtypes": (
        PlanError,
        lambda: surgery.transplant(Net().double(), Net(), STEM, how="share"),
        "different forms",
    ),
    "moving another shape": (
        ArgumentError,
        lambda: surgery.transplant(
            nn.ModuleDict({"head": nn.Linear(4, 7)}),
            Net(),
            how="share",
            on_mismatch=lambda a, t, o: t[:2],
        ),
        "given away",
    ),
    "values too large": (PlanError, lambda: surgery.transplant(float64(), Net()), "too large"),
    "complex numbers": (
        PlanError,
        lambda: surgery.transplant(complex_net(), Net(), STEM),
        "cannot hold",
    ),
    "a sparse donor": (PlanError, lambda: surgery.transplant(with_sparse(), Net()), "sparse"),
    "a sparse recipient": (PlanError, lambda: surgery.transplant(Net(), with_sparse()), "sparse"),
    "a class of tensors": (
        PlanError,
        lambda: surgery.transplant(with_subclass(), Net()),
        "class of its own",
    ),
    "packed weights": (
        PlanError,
        lambda: surgery.transplant(quantised(), quantised(), {"0": "0"}, differences="allow"),
        "packed",
    ),
    "memory shared in part": (
        PlanError,
        lambda: surgery.transplant(Net(), overlapping(), STEM),
        "shares memory",
    ),
    "sharing a checkpoint": (
        ArgumentError,
        lambda: surgery.transplant(Net().state_dict(), Net(), how="share"),
        "checkpoint",
    ),
    "a dict without tensors": (SurgeryError, lambda: surgery.transplant({}, Net()), ""),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_input_says_what_to_do(name: str):
    kind, action, words = WRONG[name]
    with pytest.raises(kind) as caught:
        action()
    assert words in str(caught.value)
    assert caught.value.where
    assert caught.value.fix


def one_model() -> Iterator[tuple[str, Callable[[Net], object]]]:
    swap = {"encoder.0": "encoder.1", "encoder.1": "encoder.0"}
    yield "same model", lambda model: surgery.transplant(model, model)
    yield "same model", lambda model: surgery.transplant(model, model, STEM, how="move")
    yield "read and written", lambda model: surgery.transplant(model, model, swap)
    chain = {"encoder.0.1": "encoder.1.1", "encoder.1.1.bias": "encoder.0.1.bias"}
    yield "read and written", lambda model: surgery.transplant(model, model, chain)
    yield "in common", lambda m: surgery.transplant(m.encoder, m, {"0": "encoder.1"}, how="move")


@pytest.mark.parametrize(("words", "action"), list(one_model()))
def test_one_model_that_gives_and_takes_the_same_is_refused(
    words: str, action: Callable[[Net], object]
):
    model = shaken(Net())
    before = state_of(model)
    with pytest.raises(SurgeryError, match=words):
        action(model)
    assert not differences(before, state_of(model))


def test_a_tensor_that_both_have_is_left_alone():
    donor, recipient = shaken(Net()), Net()
    surgery.transplant(donor, recipient, {"stem": "stem"}, how="share")
    outcome = surgery.transplant(donor, recipient, {"stem": "stem"})
    assert not outcome.plan.steps
    assert any("already" in note for note in outcome.plan.notes)
