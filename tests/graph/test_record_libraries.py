"""Models of libraries, tiny, recorded on meta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from surgery.graph.example import Example
from surgery.graph.record import record_graph

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "pad_token_id": 0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}

TEXT: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "Electra": {**SIZES, "embedding_size": 16},
    "GPT2": SMALL,
    "Llama": {**SIZES, "num_key_value_heads": 4},
    "Qwen2": {**SIZES, "num_key_value_heads": 4},
    "T5": {**T5, "eos_token_id": 1, "decoder_start_token_id": 0},
    "Longformer": {**SIZES, "attention_window": 4},
}


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    logging = pytest.importorskip("transformers").logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEXT)
def test_a_text_classifier_without_attention_mask_runs_on_meta(name: str) -> None:
    library: Any = pytest.importorskip("transformers")
    config = getattr(library, f"{name}Config")(**TEXT[name], num_labels=5)
    model: nn.Module = getattr(library, f"{name}ForSequenceClassification")(config)
    ids = torch.randint(3, 90, (2, 12))
    ids[:, -1] = 1
    for train in (False, True):
        graph = record_graph(model, Example((), {"input_ids": ids}), train=train)
        assert graph.backend == "meta"
        assert graph.leaves[0].path == "output.logits"
        assert graph.leaves[0].spec.shape == (2, 5)


TIMM = ("resnet10t", "vit_tiny_patch16_224", "mixer_s32_224", "mobilenetv3_small_050")
TIMM += ("efficientnet_lite0", "convnext_atto", "levit_128s", "edgenext_xx_small")
TIMM += ("mobilevit_xxs", "ghostnet_050", "repvgg_a0", "poolformer_s12")


def build(name: str) -> nn.Module:
    create: Callable[..., nn.Module] = pytest.importorskip("timm").create_model
    with torch.device("meta"):
        return create(name, num_classes=11)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TIMM)
def test_an_image_classifier_runs_on_meta(name: str) -> None:
    model = build(name)
    size = model.default_cfg["input_size"]
    for train in (False, True):
        graph = record_graph(model, Example((torch.zeros(2, *size, device="meta"),)), train=train)
        assert graph.backend == "meta"
        assert graph.leaves[0].spec.shape == (2, 11)
        assert graph.flops > 0
