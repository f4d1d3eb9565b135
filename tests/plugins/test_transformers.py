from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_plugins import transformers as plugin
from surgery_plugins import transformers_catalog as catalog
from torch import nn

import surgery
from benchmarks.zoo_configs import attempts
from surgery.errors import ArgumentError, NoHeadError, PlanError
from surgery.families.applied import example_for, heads_for, stages_for, stem_for
from surgery.families.registry import Registry
from surgery.heads import find_heads
from surgery.operations.target import resolve_target
from surgery.testing import check_family

transformers = pytest.importorskip("transformers")
FAMILY = plugin.FAMILY
REGISTRY = Registry.of(FAMILY)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "intermediate_size": 64, "vocab_size": 99}
IMAGE = {**SIZES, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
SOUND = {**SIZES, "intermediate_size": 64, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16}

SMALL: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": TEXT,
    "BertForTokenClassification": TEXT,
    "LlamaForSequenceClassification": {**TEXT, "num_key_value_heads": 2},
    "GPT2ForSequenceClassification": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50257},
    "BartForSequenceClassification": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
    "XLMForSequenceClassification": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 99},
    "ViTForImageClassification": IMAGE,
    "DeiTForImageClassificationWithTeacher": IMAGE,
    "ResNetForImageClassification": {"hidden_sizes": [8, 16], "depths": [1, 1]},
    "TimesformerForVideoClassification": {**IMAGE, "num_frames": 2},
    "Wav2Vec2ForSequenceClassification": SOUND,
    "ASTForAudioClassification": {**SIZES, "intermediate_size": 64, "max_length": 64},
}


def build(name: str, place: str = "cpu", **options: Any) -> nn.Module:
    with torch.device(place):
        return catalog.of_class(name, **{**SMALL[name], **options}).eval()


def builder(name: str) -> Callable[[], nn.Module]:
    return lambda: build(name)


def shrunken(name: str) -> nn.Module:
    return next(attempts(name, 2, 3e8)).eval()


@pytest.mark.parametrize("name", SMALL)
def test_the_family_keeps_its_word(name: str):
    assert check_family(FAMILY, models={name: builder(name)}) == (name,)


@pytest.mark.parametrize("name", SMALL)
def test_configuration_and_loss_follow_seven_classes_and_come_back(name: str):
    torch.manual_seed(0)
    model = build(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    labels = model.config.num_labels
    outcome = surgery.replace_head(model, 7, registry=REGISTRY)
    assert (model.config.num_labels, len(model.config.id2label)) == (7, 7)
    assert set(model.config.label2id.values()) == set(range(7))
    example = example_for(FAMILY, model)
    answer = model(*example.args, **example.kwargs).logits
    assert answer.shape[-1] == 7
    # The model with a teacher takes no labels.
    if not name.endswith("WithTeacher"):
        told = torch.full(answer.shape[:-1], 6)
        loss = model(*example.args, **example.kwargs, labels=told).loss
        wanted = nn.functional.cross_entropy(answer.flatten(0, -2), told.flatten())
        assert torch.allclose(loss, wanted, atol=1e-5)
    outcome.undo()
    assert (model.config.num_labels, len(model.config.label2id)) == (labels, labels)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_without_the_plugin_the_graph_finds_the_same_head(name: str):
    model = build(name, num_labels=5)
    (known, *others) = find_heads(model, registry=REGISTRY)
    alone = find_heads(model, registry=Registry.of())
    assert [h.address for h in alone] == [known.address, *(h.address for h in others)]


def test_without_the_plugin_the_configuration_follows():
    model = build("BertForSequenceClassification", num_labels=5)
    outcome = surgery.replace_head(model, 7, registry=Registry.of())
    assert (model.num_labels, model.config.num_labels, len(model.config.id2label)) == (7, 7, 7)
    assert set(model.config.label2id.values()) == set(range(7))
    outcome.undo()
    assert (model.num_labels, model.config.num_labels) == (5, 5)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("BertForSequenceClassification", ("input_ids", "attention_mask")),
        ("ViTForImageClassification", ("pixel_values",)),
        ("TimesformerForVideoClassification", ("pixel_values",)),
        ("Wav2Vec2ForSequenceClassification", ("input_values",)),
    ],
)
def test_the_example_goes_by_the_main_input(name: str, inputs: tuple[str, ...]):
    model = build(name, "meta")
    given = example_for(FAMILY, model).kwargs
    assert model.main_input_name in given
    assert {key for key, value in given.items() if torch.is_tensor(value)} == {*inputs}


def test_the_catalog_lists_the_classes_behind_the_auto_classes():
    auto = transformers.models.auto.modeling_auto
    for task in catalog.TASKS:
        for kind, names in getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            assert kind in FAMILY.catalog
            assert set([names] if isinstance(names, str) else names) <= set(FAMILY.catalog)


def test_listing_imports_neither_the_library_nor_torch():
    code = "import sys; from surgery_plugins.transformers import FAMILY; n = len(FAMILY.catalog); "
    code += "sys.exit(n < 100 or 'transformers' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_type_is_built_with_options_and_a_number_of_classes():
    outcome = surgery.build("transformers:vit", num_classes=7, registry=REGISTRY, **IMAGE)
    assert type(outcome.model).__name__ == "ViTForImageClassification"
    assert (outcome.model.config.num_labels, outcome.model.classifier.out_features) == (7, 7)


def test_a_directory_with_a_configuration_is_built(tmp_path: Path):
    model = build("BertForTokenClassification", num_labels=3)
    model.config.architectures = ["BertForTokenClassification"]
    model.config.save_pretrained(tmp_path)
    made = resolve_target(f"transformers:{tmp_path}", REGISTRY).factory()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    assert type(made) is type(model)
    assert made.config.num_labels == 3
    with pytest.raises(ArgumentError):
        resolve_target(f"transformers:{tmp_path / 'elsewhere'}", REGISTRY)


def test_key_and_value_caches_are_no_outputs():
    # Two heads of keys are as many as the labels: the cache would look like classes.
    model = build("LlamaForSequenceClassification")
    assert [head.address for head in find_heads(model, registry=REGISTRY)] == ["score"]


@pytest.mark.parametrize(("pad", "rows"), [(None, 1), (0, 2)])
def test_a_text_model_that_cannot_pad_gets_one_text(pad: int | None, rows: int):
    model = build("GPT2ForSequenceClassification", pad_token_id=pad)
    assert example_for(FAMILY, model).kwargs["input_ids"].shape[0] == rows


def test_the_last_word_ends_the_text():
    model = build("BartForSequenceClassification")
    words = example_for(FAMILY, model).kwargs["input_ids"]
    assert (words == model.config.eos_token_id).sum(1).tolist() == [1, 1]


def test_what_looks_for_the_end_of_a_text_needs_no_weights():
    model = build("BartForSequenceClassification", "meta")
    for registry in (REGISTRY, Registry.of()):
        (head,) = find_heads(model, registry=registry)
        assert head.address == "classification_head.out_proj"


def test_words_on_a_page_have_places():
    def bros() -> nn.Module:
        return catalog.of_class("BrosForTokenClassification", **{**TEXT, "hidden_size": 64})

    assert check_family(FAMILY, models={"bros": bros}) == ("bros",)
    assert "bbox" not in example_for(FAMILY, build("BertForTokenClassification")).kwargs


def test_classes_counted_as_speakers_follow():
    kind = transformers.Nemotron3DiarizationForAudioFrameClassification
    with torch.device("meta"):
        model = kind(kind.config_class(audio_config={"num_hidden_layers": 1}))
    (claim,) = heads_for(FAMILY, model)
    assert claim.sync == (
        "config.head_config.num_speakers",
        "config.streaming_config.num_speakers",
    )


def other(name: str) -> nn.Module:
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**SIZES, intermediate_size=64))


@pytest.mark.parametrize(
    ("name", "role", "address", "scores"),
    [
        ("BertForQuestionAnswering", "span", "qa_outputs", ["start_logits", "end_logits"]),
        ("ModernBertForQuestionAnswering", "span", "classifier", ["start_logits", "end_logits"]),
        ("LongformerForQuestionAnswering", "span", "qa_outputs", ["start_logits", "end_logits"]),
        ("BertForMultipleChoice", "choice", "classifier", ["logits"]),
        ("LongformerForMultipleChoice", "choice", "classifier", ["logits"]),
    ],
)
def test_what_scores_something_else_is_named_and_refused(
    name: str, role: str, address: str, scores: list[str]
):
    model = other(name)
    (head,) = find_heads(model, registry=REGISTRY)
    assert (head.address, head.role, head.corroborated) == (address, role, True)
    assert [(each.path, each.axis) for each in head.outputs] == [
        (f"output.{score}", -1) for score in scores
    ]
    for verb in (partial(surgery.replace_head, model, 7), partial(surgery.remove_head, model)):
        with pytest.raises(NoHeadError, match=f"(?s)^no layer.*{address} scores"):
            verb(registry=REGISTRY)
        with pytest.raises(ArgumentError, match="makes no classes"):
            verb(registry=REGISTRY, heads=address)
    frozen = surgery.freeze(model, except_="heads", registry=REGISTRY)
    trainable = {name for name, p in frozen.model.named_parameters() if p.requires_grad}
    assert trainable == {f"{address}.weight", f"{address}.bias"}


def test_what_scores_spans_by_several_layers_is_named_and_refused():
    model = other("SplinterForQuestionAnswering")
    heads = find_heads(model, registry=REGISTRY)
    assert {head.role for head in heads} == {"span"}
    ends = ("start_transform.dense", "start_classifier", "end_transform.dense", "end_classifier")
    assert {head.address for head in heads} == {f"splinter_qass.{end}" for end in ends}
    with pytest.raises(NoHeadError, match="scores where an answer starts"):
        surgery.replace_head(model, 7, registry=REGISTRY)


def test_answers_to_choose_from_are_counted_by_their_own_name():
    kind = transformers.LxmertForQuestionAnswering
    layers = {"l_layers": 1, "r_layers": 1, "x_layers": 1, "num_qa_labels": 11}
    model = kind(kind.config_class(**SIZES, intermediate_size=64, **layers)).eval()
    outcome = surgery.replace_head(model, 7, registry=REGISTRY)
    assert (model.num_qa_labels, model.config.num_qa_labels) == (7, 7)
    example = example_for(FAMILY, model)
    answers = model(*example.args, **example.kwargs, labels=torch.tensor([6, 0]))
    assert answers.question_answering_score.shape == (2, 7)
    assert torch.isfinite(answers.loss)
    outcome.undo()
    assert (model.num_qa_labels, model.config.num_qa_labels) == (11, 11)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("MarianMTModel", "lm_head"),
        ("FSMTForConditionalGeneration", "model.decoder.output_projection"),
    ],
)
def test_what_reads_and_writes_is_given_both(name: str, address: str):
    kind = getattr(transformers, name)
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    heads = {"decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    with torch.device("meta"):
        model = kind(kind.config_class(**small, **heads))
    assert "decoder_input_ids" in example_for(FAMILY, model).kwargs
    (head,) = find_heads(model, registry=REGISTRY)
    assert (head.address, head.corroborated) == (address, True)


@pytest.mark.parametrize(
    ("name", "heads", "tied"),
    [
        ("GlmAsrForConditionalGeneration", ["lm_head"], True),
        ("GotOcr2ForConditionalGeneration", ["lm_head"], True),
        # What it hears comes with the words, and what it keeps of the sound is no output.
        ("VoxtralRealtimeForConditionalGeneration", ["lm_head"], True),
        # Words after an image, which is asked for.
        ("Blip2ForConditionalGeneration", ["language_model.lm_head"], True),
        # Codes of several books, each in rows of its own and with a layer of its own.
        ("MusicgenForCausalLM", [f"lm_heads.{number}" for number in range(4)], False),
    ],
)
def test_what_writes_is_asked_in_words(name: str, heads: list[str], tied: bool):
    model = shrunken(name)
    found = find_heads(model, registry=REGISTRY)
    assert [(head.address, head.role, head.corroborated) for head in found] == [
        (address, "main", True) for address in heads
    ]
    assert {bool(head.tied_to) for head in found} == {tied}


def test_what_must_look_at_an_image_is_left_to_inference():
    assert FAMILY.example(other("ViltForQuestionAnswering")) is None


def test_an_assistant_goes_on_from_what_another_model_keeps():
    model = shrunken("Gemma4UnifiedAssistantForCausalLM")
    given = example_for(FAMILY, model).kwargs
    assert set(given["shared_kv_states"]) == {"sliding_attention", "full_attention"}
    # What it hands back to the other model is nobody's classes, and no operation takes it.
    heads = {head.address: head for head in find_heads(model, registry=REGISTRY)}
    assert {"lm_head"} == {address for address, head in heads.items() if head.corroborated}
    # The table is the head's, though nothing reads from it here.
    assert heads["lm_head"].tied_to == ("model.embed_tokens.weight",)
    with pytest.raises(PlanError, match=r"untie it first.*lm_head"):
        surgery.replace_head(model, 7, registry=REGISTRY)


def test_what_detects_is_left_to_the_graph():
    assert heads_for(FAMILY, other("YolosForObjectDetection")) == ()


@pytest.mark.parametrize(
    ("name", "address", "embedding"),
    [
        ("BertForMaskedLM", "cls.predictions.decoder", "bert.embeddings.word_embeddings.weight"),
        ("AlbertForMaskedLM", "predictions.decoder", "albert.embeddings.word_embeddings.weight"),
        ("GPT2LMHeadModel", "lm_head", "transformer.wte.weight"),
        ("ModernBertDecoderForCausalLM", "decoder", "model.embeddings.tok_embeddings.weight"),
    ],
)
def test_a_tied_head_of_a_language_model_is_recognised(name: str, address: str, embedding: str):
    (head,) = find_heads(other(name), registry=REGISTRY)
    assert (head.address, head.tied_to) == (address, (embedding,))
    assert head.corroborated


@pytest.mark.parametrize(
    ("name", "address", "embedding"),
    [
        # Two layers side by side, one of them the table's.
        (
            "MobileBertForMaskedLM",
            "cls.predictions",
            "mobilebert.embeddings.word_embeddings.weight",
        ),
        # No layer at all: the table scores what it reads.
        (
            "PerceiverForMaskedLM",
            "perceiver.input_preprocessor.embeddings",
            "perceiver.input_preprocessor.embeddings.weight",
        ),
    ],
)
def test_words_that_no_layer_alone_makes(name: str, address: str, embedding: str):
    model = shrunken(name)
    (head,) = find_heads(model, registry=REGISTRY)
    assert (head.address, head.tied_to, head.corroborated) == (address, (embedding,), True)
    with pytest.raises(PlanError):
        surgery.replace_head(model, 7, registry=REGISTRY)


def test_stages_are_the_layers():
    model = build("BertForSequenceClassification")
    assert stem_for(FAMILY, model) == ("bert.embeddings",)
    assert stages_for(FAMILY, model) == (
        ("bert.encoder.layer.0",),
        ("bert.encoder.layer.1", "bert.pooler"),
    )
