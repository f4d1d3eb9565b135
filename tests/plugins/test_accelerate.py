"""Models that accelerate dispatched: hooks stay in place, or the operation is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from surgery_plugins.accelerate import DISPATCHED
from surgery_plugins.transformers import FAMILY
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import surgery
from surgery.errors import WrappedModelError
from surgery.families.registry import Registry

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

KNOWN = Registry.of(FAMILY, wrappings=[DISPATCHED])
IDS = {"input_ids": torch.arange(10).reshape(2, 5) + 1}


def bert(hidden_size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=50,
        num_labels=4,
    )
    return transformers.BertForSequenceClassification(config).eval()


def dispatched(model: nn.Module, folder: Path, **places: str) -> nn.Module:
    devices = {"bert": "cpu", "dropout": "cpu", "classifier": "cpu", **places}
    return accelerate.dispatch_model(
        model, device_map=devices, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


# With the whole trunk elsewhere, and with the head as well.
TRUNK: dict[str, Callable[[Path], nn.Module]] = {
    "hooks": lambda folder: dispatched(bert(), folder),
    "trunk-on-disk": lambda folder: dispatched(bert(), folder, bert="disk"),
}
HEAD: dict[str, Callable[[Path], nn.Module]] = {
    "head-on-disk": lambda folder: dispatched(bert(), folder, classifier="disk"),
    "all-in-memory": lambda folder: accelerate.cpu_offload(bert(), execution_device="cpu"),
    "all-on-disk": lambda folder: accelerate.disk_offload(
        bert(), str(folder), execution_device="cpu"
    ),
}


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**IDS).logits


def hooks(model: nn.Module) -> list[tuple[int, object]]:
    return [(id(m._hf_hook), m.forward) for m in model.modules() if hasattr(m, "_hf_hook")]


@pytest.mark.parametrize("name", [*TRUNK, *HEAD])
def test_heads_are_found_as_in_the_bare_model(name: str, tmp_path: Path) -> None:
    model = {**TRUNK, **HEAD}[name](tmp_path)
    expected, before, around = answers(model), dict(model.named_parameters()), hooks(model)
    bare, found = (surgery.find_heads(m, registry=KNOWN) for m in (bert(), model))
    assert [(h.address, h.num_classes, h.weights) for h in found] == [
        (h.address, h.num_classes, h.weights) for h in bare
    ]
    assert found[0].corroborated
    assert hooks(model) == around
    assert all(before[name] is p for name, p in model.named_parameters())
    assert torch.equal(answers(model), expected)
    audit = surgery.audit(model)
    assert audit.total == surgery.audit(bert()).total


@pytest.mark.parametrize("name", TRUNK)
def test_a_head_that_is_here_is_replaced_and_every_hook_stays(name: str, tmp_path: Path) -> None:
    model = TRUNK[name](tmp_path)
    before, around = answers(model), hooks(model)
    outcome = surgery.replace_head(model, 7, keep={0: 1}, registry=KNOWN)
    assert hooks(model) == around
    after = answers(model)
    assert after.shape == (2, 7)
    torch.testing.assert_close(after[:, 0], before[:, 1])
    outcome.undo()
    assert hooks(model) == around
    assert torch.equal(answers(model), before)


@pytest.mark.parametrize("name", HEAD)
def test_what_is_kept_elsewhere_is_refused_and_the_remedy_works(name: str, tmp_path: Path) -> None:
    model = HEAD[name](tmp_path)
    before, around = answers(model), hooks(model)
    for change in (
        lambda: surgery.replace_head(model, 7, registry=KNOWN),
        lambda: surgery.load_weights(model, bert().state_dict(), registry=KNOWN),
    ):
        with pytest.raises(WrappedModelError, match="kept elsewhere") as refused:
            change()
        assert hooks(model) == around
        assert torch.equal(answers(model), before)
    with pytest.raises(WrappedModelError) as refused:
        surgery.replace_head(model, 7, registry=KNOWN)
    remedy = str(refused.value.fix).split(", which")[0]
    assert "'classifier'" in remedy
    eval(remedy, {"model": model, "accelerate": accelerate})
    assert torch.equal(answers(model), before)
    outcome = surgery.replace_head(model, 7, keep={0: 1}, registry=KNOWN)
    torch.testing.assert_close(answers(model)[:, 0], before[:, 1])
    outcome.undo()
    assert torch.equal(answers(model), before)


def test_what_is_refused_would_be_lost() -> None:
    """Without the plugin a loaded value is written over at the next forward."""
    model = accelerate.cpu_offload(bert(), execution_device="cpu")
    before = answers(model)
    other = {name: tensor + 1 for name, tensor in bert().state_dict().items()}
    model.load_state_dict(other, assign=True)
    assert torch.equal(answers(model), before)


def test_freezing_holds_where_the_weights_are_kept_elsewhere() -> None:
    model = accelerate.cpu_offload(bert(), execution_device="cpu")
    before = answers(model)
    outcome = surgery.freeze(model, except_="heads", registry=KNOWN)
    answers(model)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == ["classifier.weight", "classifier.bias"]
    assert torch.equal(answers(model), before)
    assert outcome.plan.steps


class Clones(TorchDispatchMode):
    """The largest tensor that was copied with its values."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not made.is_meta and "clone" in str(func):
            self.largest = max(self.largest, made.numel())
        return made


def test_no_weight_that_is_kept_elsewhere_is_read() -> None:
    model = accelerate.cpu_offload(bert(512), execution_device="cpu")
    with Clones() as seen:
        surgery.find_heads(model, registry=KNOWN)
    assert seen.largest <= 100_000
    with Clones() as seen, torch.no_grad():
        model.bert.embeddings.word_embeddings._hf_hook.weights_map["weight"].clone()
    assert seen.largest == 50 * 512


def test_empty_weights_are_read_through_and_changed() -> None:
    with accelerate.init_empty_weights():
        model = bert()
    assert all(parameter.is_meta for parameter in model.parameters())
    outcome = surgery.replace_head(model, 7, registry=KNOWN)
    assert model.classifier.weight.shape == (7, 16)
    assert all(tensor.is_meta for tensor in outcome.new.values())
    outcome.undo()
    assert model.classifier.weight.shape == (4, 16)


class Trunk(nn.Module):
    """Layers without a head, perhaps with a place for one."""

    def __init__(self, place: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 8)
        self.fc = nn.Identity() if place else None

    def forward(self, x: Tensor) -> Tensor:
        features = self.two(self.one(x).relu()).relu()
        return features if self.fc is None else self.fc(features)


AWAY: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "memory": lambda model, _: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu"),
}


@pytest.mark.parametrize("name", AWAY)
@pytest.mark.parametrize("place", [True, False])
def test_an_attached_head_is_where_the_features_come_out(
    name: str, place: bool, tmp_path: Path
) -> None:
    x = torch.randn(2, 6)
    bare = Trunk(place)
    features = bare(x).detach()
    model = AWAY[name](bare, tmp_path)
    outcome = surgery.replace_head(model, 3, attach=True, example=x, registry=KNOWN)
    head = outcome.model.fc if place else outcome.model.head
    assert {p.device.type for p in head.parameters()} == {"cpu"}
    assert torch.allclose(outcome.model(x), head(features))
    assert outcome.undo() is model
    assert torch.equal(model(x), features)


def test_an_attached_head_is_on_meta_where_the_trunk_has_no_values() -> None:
    with accelerate.init_empty_weights():
        model = Trunk(place=False)
    outcome = surgery.replace_head(model, 3, attach=True, example=torch.randn(2, 6), registry=KNOWN)
    assert all(p.is_meta for p in outcome.model.parameters())
