"""All that says how many classes there are changes together, and what says something else stays."""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn

import surgery
from surgery.facts import find_facts
from surgery.families.registry import Registry
from tests.hostile import Headed, mlp, random, tokens, vectors
from tests.hostile_facts import Labels
from tests.operations.state import differences, state_of
from tests.test_strategies import fact

NO_PLUGINS = Registry.of()
LETTERS = list("abcde")


def headed(**facts: Any) -> nn.Module:
    model = Headed()
    for name, value in facts.items():
        setattr(model, name, value)
    return model


def replaced(model: nn.Module, *args: Any, **options: Any) -> surgery.operations.plan.Outcome:
    options = {"heads": "fc", "example": vectors()(), "registry": NO_PLUGINS, **options}
    return surgery.replace_head(model, *args, **options)


Global = collections.namedtuple("Global", ["num_classes", "width"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    num_classes: int = 5
    width: int = 5


@dataclasses.dataclass
class Open:
    num_labels: int = 5


NUMBERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attribute": (lambda: headed(num_classes=5), "num_classes"),
    "named tuple": (lambda: headed(_global_params=Global(5, 5)), "_global_params.num_classes"),
    "frozen dataclass": (lambda: headed(config=Frozen()), "config.num_classes"),
    "dataclass": (lambda: headed(cfg=Open()), "cfg.num_labels"),
    "dict": (lambda: headed(hparams={"num_classes": 5, "n": 5}), "hparams.num_classes"),
    "namespace": (lambda: headed(args=argparse.Namespace(n_classes=5, lr=5)), "args.n_classes"),
    "property": (lambda: headed(config=Labels(5)), "config.num_labels"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_follows_wherever_it_stands_and_comes_back_as_it_was(name: str) -> None:
    make, address = NUMBERS[name]
    model = make()
    before = state_of(model)
    outcome = replaced(model, 7)
    assert fact(model, address) == 7
    assert any(step.address == address for step in outcome.plan.steps)
    assert surgery.find_heads(model, vectors()(), registry=NO_PLUGINS)[0].corroborated
    outcome.undo()
    assert fact(model, address) == 5
    assert not differences(before, state_of(model))


def test_what_stands_beside_the_number_stays() -> None:
    model = headed(config=Frozen(), hparams={"num_classes": 5, "n": 5})
    config, hparams = model.config, model.hparams
    replaced(model, 7)
    assert (model.config.width, model.hparams["n"]) == (5, 5)
    assert config == Frozen()
    assert model.hparams is hparams


def test_a_number_that_is_another_number_stays() -> None:
    model = headed(num_classes=1000, config={"num_labels": 3})
    outcome = replaced(model, 7)
    assert (model.num_classes, model.config) == (1000, {"num_labels": 3})
    assert outcome.plan.notes == ()


NAMES: dict[str, tuple[Any, Any, Any]] = {
    # What is held, what it becomes with names, what without.
    "classes": (LETTERS, ["x", "y"], ["LABEL_0", "LABEL_1"]),
    "class_names": (tuple(LETTERS), ("x", "y"), ("LABEL_0", "LABEL_1")),
    "id2label": (
        dict(enumerate(LETTERS)),
        {0: "x", 1: "y"},
        {0: "LABEL_0", 1: "LABEL_1"},
    ),
    "label2id": (
        {name: i for i, name in enumerate(LETTERS)},
        {"x": 0, "y": 1},
        {"LABEL_0": 0, "LABEL_1": 1},
    ),
    "class_to_idx": (
        {name: str(i) for i, name in enumerate(LETTERS)},
        {"x": "0", "y": "1"},
        {"LABEL_0": "0", "LABEL_1": "1"},
    ),
    "idx_to_class": (
        {str(i): name for i, name in enumerate(LETTERS)},
        {"0": "x", "1": "y"},
        {"0": "LABEL_0", "1": "LABEL_1"},
    ),
}


@pytest.mark.parametrize("inside", [True, False], ids=["in a configuration", "on the model"])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_classes_follow_in_their_own_form(name: str, inside: bool) -> None:
    held, with_names, without = NAMES[name]
    model = headed(config=SimpleNamespace(**{name: held})) if inside else headed(**{name: held})

    def now() -> Any:
        return getattr(model.config if inside else model, name)

    outcome = replaced(model, classes=["x", "y"])
    assert now() == with_names
    assert type(now()) is type(held)
    assert outcome.plan.notes == ()
    outcome.undo()
    assert now() is held
    replaced(model, 2)
    assert now() == without


def test_names_without_a_place_are_said_to_be_lost() -> None:
    outcome = replaced(headed(num_classes=5), classes=["x", "y"])
    assert outcome.plan.notes == (
        "the model has no place for class names: they are remembered for this very object and "
        "in what surgery.save writes, and neither copies nor a state_dict hold them",
    )


class Two(nn.Module):
    def __init__(self, second: int = 5) -> None:
        super().__init__()
        self.trunk, self.one, self.two = mlp(), Headed(), Headed(second)
        self.num_classes = self.one.num_classes = 5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.one(x), self.two(x)


def test_a_fact_about_one_of_two_heads_follows_that_head() -> None:
    model = Two()
    replaced(model, 7, heads="one").undo()
    replaced(model, heads={"one": 7, "two": 9})
    assert model.one.num_classes == 7


def test_a_fact_about_two_heads_that_part_stays_and_that_is_said() -> None:
    model = Two()
    outcome = replaced(model, 7, heads="one")
    assert (model.num_classes, model.one.num_classes) == (5, 7)
    assert outcome.plan.notes == (
        "two.fc (5 classes) keeps its classes",
        "num_classes says 5 and stays: it may be about any of one.fc, two.fc, which are no "
        "longer alike",
    )


def test_a_fact_about_two_heads_follows_both() -> None:
    model = Two()
    outcome = replaced(model, 7, heads=["one", "two"])
    assert model.num_classes == 7
    assert outcome.plan.notes == ()


def test_a_fact_is_about_the_heads_whose_number_it_gives() -> None:
    model = Two(second=6)
    replaced(model, heads={"one": 7, "two": 9})
    assert (model.num_classes, model.one.num_classes) == (7, 7)


class Smoothed(nn.Module):
    """A loss that knows the number of classes, and holds nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, F.one_hot(labels, self.num_classes).float())


def test_a_loss_beside_the_head_follows() -> None:
    model = headed(criterion=Smoothed())
    outcome = replaced(model, 7)
    assert model.criterion(model(vectors()()), torch.tensor([6, 0])).isfinite()
    outcome.undo()
    assert model.criterion.num_classes == 5


def test_another_part_of_the_model_with_that_number_does_not() -> None:
    other = nn.Linear(2, 2)
    other.num_classes = 5
    model = headed(other=other)
    replaced(model, 7)
    assert other.num_classes == 5


class ReadOnly(Headed):
    @property
    def num_classes(self) -> int:
        return self.fc.out_features


def test_a_number_that_the_model_computes_follows_by_itself() -> None:
    model = ReadOnly()
    outcome = replaced(model, 7)
    assert model.num_classes == 7
    assert outcome.plan.notes == (
        "num_classes says 5 and cannot be set: it follows only if the model computes it from the "
        "head",
    )


def test_a_fact_that_cannot_be_written_is_refused_and_nothing_is_touched() -> None:
    model = headed(config=MappingProxyType({"num_classes": 5}))
    before = state_of(model)
    with pytest.raises(surgery.errors.SurgeryError):
        replaced(model, 7)
    assert not differences(before, state_of(model))


def test_efficientnet_pytorch() -> None:
    with torch.device("meta"):
        model = EfficientNet.from_name("efficientnet-b0", num_classes=5)
    params = model._global_params
    outcome = surgery.replace_head(model, 7, example=random(2, 3, 64, 64))
    assert model._global_params == params._replace(num_classes=7)
    outcome.undo()
    assert model._global_params is params


TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


def bert(transformers: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.BertConfig(
        **TINY, vocab_size=16, num_labels=5, problem_type="single_label_classification"
    )
    return transformers.BertForSequenceClassification(config), {"input_ids": tokens()()}


def roberta(transformers: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.RobertaConfig(
        **TINY, vocab_size=16, num_labels=5, problem_type="single_label_classification"
    )
    return transformers.RobertaForSequenceClassification(config), {"input_ids": tokens()()}


def vit(transformers: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.ViTConfig(
        **TINY,
        image_size=8,
        patch_size=4,
        num_labels=5,
        problem_type="single_label_classification",
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": random(2, 3, 8, 8)}


def gpt2(transformers: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.GPT2Config(
        n_embd=8,
        n_layer=1,
        n_head=2,
        vocab_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        num_labels=5,
        problem_type="single_label_classification",
    )
    return transformers.GPT2ForSequenceClassification(config), {"input_ids": tokens()()}


def wav2vec(transformers: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.Wav2Vec2Config(
        **TINY,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=5,
    )
    return transformers.Wav2Vec2ForSequenceClassification(config), {"input_values": random(2, 800)}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("make", [bert, roberta, vit, gpt2, wav2vec])
def test_transformers(make: Callable[[Any], tuple[nn.Module, dict[str, Tensor]]]) -> None:
    """Configuration, names and the number on the model follow; the loss takes new labels."""
    model, inputs = make(pytest.importorskip("transformers"))
    config, before = model.config, model.config.to_json_string()
    [head] = surgery.find_heads(model, inputs, registry=NO_PLUGINS)
    assert head.corroborated
    names = [f"class {i}" for i in range(7)]
    outcome = surgery.replace_head(model, classes=names, example=inputs, registry=NO_PLUGINS)
    assert model.config is config
    assert config.num_labels == 7
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: i for i, name in enumerate(names)}
    assert getattr(model, "num_labels", 7) == 7
    answer = model(**inputs, labels=torch.tensor([6, 0]))
    assert answer.logits.shape == (2, 7)
    assert answer.loss.isfinite()
    outcome.undo()
    assert config.to_json_string() == before
    assert getattr(model, "num_labels", 5) == 5
    assert len(find_facts(model)) >= 3


@pytest.mark.filterwarnings("default")
def test_an_output_layer_tied_to_the_embedding_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForMaskedLM(transformers.BertConfig(**TINY, vocab_size=16))
    with pytest.raises(surgery.errors.PlanError, match="also used as an embedding") as raised:
        replaced(model, 7, heads="cls.predictions.decoder", example={"input_ids": tokens()()})
    assert raised.value.found == "tied to bert.embeddings.word_embeddings.weight"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", {"fc"}),
        ("vit_tiny_patch16_224", {"head"}),
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
        ("levit_128s", {"head.linear", "head_dist.linear"}),
        ("mobilenetv3_small_100", {"classifier"}),
        ("convnext_atto", {"head.fc"}),
    ],
)
def test_timm(name: str, heads: set[str]) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=11)
    example = torch.zeros(2, *model.default_cfg["input_size"])
    outcome = surgery.replace_head(model, 7, example=example, registry=NO_PLUGINS)
    assert set(outcome.plan.probes) == heads
    assert model.num_classes == 7
    assert {change.after.shape for change in outcome.plan.outputs} == {(2, 7)}
    outcome.undo()
    assert model.num_classes == 11
