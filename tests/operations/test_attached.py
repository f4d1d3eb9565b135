"""A model that a head was attached to, afterwards: every verb takes it like any other."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import ArgumentError, WrappedModelError
from surgery.families.family import Family
from surgery.families.registry import Registry
from surgery.operations.attached import Headed
from tests.operations.state import differences, state_of
from tests.operations.trunks import Channels, Several, Tokens, words


class Staged(nn.Module):
    """A trunk of two stages, whose family is known."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.two(self.one(self.stem(x)))
        return made


FAMILY = Family(
    "staged",
    (f"{__name__}.Staged",),
    example=(2, "stem.in_channels", 9, 9),
    stem=("stem",),
    stages=(("one",), ("two",)),
)
REGISTRY = Registry.of(FAMILY)


def staged(**options: Any) -> Headed:
    options = {"num_classes": 5, **options}
    made = surgery.replace_head(Staged(), **options, attach=True, registry=REGISTRY).model
    assert isinstance(made, Headed)
    return made


def shares(model: nn.Module) -> dict[str, float]:
    groups = surgery.parameter_groups(model, lr=1.0, layer_decay=0.5, registry=REGISTRY)
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_the_stages_are_those_of_the_model_inside():
    model = staged()
    inside = shares(model.backbone)
    found = shares(model)
    assert {found.pop("head.weight"), found.pop("head.bias")} == {1.0}
    # The head is one stage more, behind all others.
    assert found == {f"backbone.{name}": rate / 2 for name, rate in inside.items()}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_stages_are_frozen_and_unfrozen_by_their_number(count: int):
    model = staged()
    surgery.freeze(model, stages=count, registry=REGISTRY)
    parts = ("stem", "one", "two")
    frozen = tuple(f"backbone.{part}." for part in parts[: count + 1])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith(frozen)
    surgery.freeze(model)
    surgery.unfreeze(model, stages=count, registry=REGISTRY)
    thawed = tuple(f"backbone.{part}." for part in parts[3 - count :])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is name.startswith((*thawed, "head."))


def test_a_plan_to_unfreeze_goes_by_the_stages_inside():
    plan = surgery.unfreezing(staged(), registry=REGISTRY)
    assert plan.at(0) == ("head",)
    assert plan.at(99) == ("stem", "backbone.one", "backbone.two", "head")


def test_without_a_family_inside_the_next_step_is_said():
    model = surgery.replace_head(Channels(), 3, attach=True, example=torch.zeros(2, 3, 9, 9)).model
    with pytest.raises(ArgumentError, match="no plugin knows the stages"):
        surgery.unfreeze(model, stages=1, registry=Registry.of())


@pytest.mark.parametrize("names", [None, ["x", "y", "z"]], ids=["number", "names"])
def test_names_follow_a_head_that_is_taken_off_and_put_back(names: list[str] | None):
    model = staged(num_classes=None, classes=["a", "b"])
    removed = surgery.remove_head(model, registry=REGISTRY)
    assert (model.num_classes, model.classes) == (0, [])
    asked: dict[str, Any] = {"num_classes": 3} if names is None else {"classes": names}
    again = surgery.replace_head(model, **asked, attach=True, registry=REGISTRY)
    assert again.model is model
    assert model.num_classes == len(model.classes or ()) == 3
    assert names is None or model.classes == names
    again.undo()
    assert (model.num_classes, model.classes) == (0, [])
    removed.undo()
    assert (model.num_classes, model.classes) == (2, ["a", "b"])


def test_an_empty_list_that_is_about_something_else_stays_empty():
    model = staged()
    surgery.remove_head(model, registry=REGISTRY)
    model.backbone.labels = []
    surgery.replace_head(model, 3, attach=True, registry=REGISTRY)
    assert model.backbone.labels == []


def test_the_keys_of_its_state_are_those_of_the_model_behind_a_prefix():
    model = Staged()
    inside = model.state_dict()
    outcome = surgery.replace_head(model, 5, attach=True, hidden=7, registry=REGISTRY)
    keys = {f"backbone.{key}" for key in inside}
    layers = {f"head.{place}.{name}" for place in (0, 2) for name in ("weight", "bias")}
    assert set(outcome.model.state_dict()) == keys | layers
    outcome.undo()
    other = surgery.replace_head(Staged(), 5, attach=True, hidden=7, registry=REGISTRY).model
    other.load_state_dict(outcome.model.state_dict())


def test_it_takes_another_number_of_colours_and_all_is_undone_in_reverse():
    model = Staged()
    before = state_of(model)
    outcomes = [surgery.replace_head(model, 5, attach=True, registry=REGISTRY)]
    made = outcomes[0].model
    outcomes.append(surgery.adapt_input(made, in_channels=1, registry=REGISTRY))
    outcomes.append(surgery.freeze(made, stages=1, registry=REGISTRY))
    outcomes.append(surgery.replace_head(made, 3, keep={0: 1}, registry=REGISTRY))
    assert made(torch.zeros(2, 1, 9, 9)).shape == (2, 3)
    assert surgery.audit(made).frozen
    for outcome in reversed(outcomes):
        last = outcome.undo()
    assert last is model
    assert not differences(before, state_of(model))


def test_another_head_is_not_attached_to_one():
    model = staged()
    with pytest.raises(ArgumentError, match="has a head") as raised:
        surgery.replace_head(model, 3, attach=True, registry=REGISTRY)
    assert "num_classes says 5" in str(raised.value)


def test_copies_and_pickles_know_their_classes_and_stages():
    model = staged(num_classes=None, classes=["a", "b"])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert other.classes == ["a", "b"]
        assert shares(other) == shares(model)


def test_a_wrapped_one_is_read_and_changed_bare():
    model = staged()
    wrapped = nn.DataParallel(model)
    (head,) = surgery.find_heads(wrapped, registry=REGISTRY)
    assert head.num_classes == 5
    assert shares(wrapped) == shares(model)
    for wrong in (wrapped, nn.DataParallel(Staged())):
        with pytest.raises(WrappedModelError, match=r"model\.module"):
            surgery.replace_head(wrong, 3, attach=True, registry=REGISTRY)
    surgery.replace_head(wrapped.module, 3, registry=REGISTRY)
    assert wrapped(torch.zeros(2, 3, 9, 9)).shape == (2, 3)


def test_it_exports():
    model = staged().eval()
    x = torch.randn(2, 3, 9, 9)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x))


class Answering(nn.Module):
    """An encoder and a decoder, whose words are other ones where they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Tokens(), Tokens()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        seen = self.encoder(input_ids, attention_mask).mean(1, keepdim=True)
        if decoder_input_ids is None:
            decoder_input_ids, decoder_attention_mask = input_ids, attention_mask
        return self.decoder(decoder_input_ids, decoder_attention_mask) + seen


@pytest.mark.parametrize("masked", [False, True], ids=["without", "masked"])
def test_what_a_decoder_is_given_is_masked_by_its_own_mask(masked: bool):
    ids, mask = words().values()
    example = {"input_ids": ids, "decoder_input_ids": ids}
    if masked:
        example["decoder_attention_mask"] = mask
    outcome = surgery.replace_head(Answering(), 3, attach=True, pool="mean", example=example)
    assert outcome.model.mask == ("decoder_attention_mask", 3)
    made = outcome.model.eval()
    hidden = made.backbone(ids, decoder_input_ids=ids, decoder_attention_mask=mask)
    expected = made.head(torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]))
    found = made(ids, decoder_input_ids=ids, decoder_attention_mask=mask)
    assert torch.allclose(found, expected, atol=1e-6)
    alone = surgery.replace_head(Answering(), 3, attach=True, pool="mean", example=words())
    assert alone.model.mask == ("attention_mask", 1)


class Heard(nn.Module):
    """Sound in, fewer places out: a mask of the sound fits none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv1d(1, 8, 4, 4), nn.LayerNorm(8)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.norm(self.layer(x[:, None]).transpose(1, 2))


def test_padding_that_cannot_be_left_out_is_told():
    outcome = surgery.replace_head(Heard(), 3, attach=True, pool="mean", example=torch.zeros(2, 16))
    assert outcome.model.mask is None
    assert any("attention_mask does not fit the 4 places" in note for note in outcome.plan.notes)


class Cached(nn.Module):
    """Attention of many questions and one answer, which gives out what it keeps for later."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.query, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
        self.key, self.value = nn.Linear(16, 4), nn.Linear(16, 4)
        self.num_labels = 4

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        samples, length, width = x.shape
        key, value = self.key(x), self.value(x)
        query = self.query(x).view(samples, length * 4, 4)
        seen = (query @ key.transpose(1, 2)).softmax(-1) @ value
        x = self.norm(x + self.out(seen.view(samples, length, width)))
        return {"hidden": x, "keys": key, "values": value}


def test_a_cache_of_as_many_entries_as_there_are_labels_is_no_class_output():
    example = {"input_ids": torch.ones(2, 6, dtype=torch.int64)}
    model = Cached()
    found = surgery.find_heads(model, example, registry=Registry.of())
    assert not any(head.corroborated for head in found)
    outcome = surgery.replace_head(
        *(model, 3), attach=True, pool="last", example=example, registry=Registry.of()
    )
    assert outcome.model.way == (("item", "hidden"),)
    assert outcome.model.head.in_features == 16


def test_the_pooled_of_several_branches_is_asked_for():
    outcome = surgery.replace_head(Several(), 3, attach=True, pool="mean", example=words())
    assert outcome.model.way == (("name", "hidden"),)
