"""Small configurations of transformers' classes: the same code, few layers, narrow ones.

What depends on what differs by architecture, so there are several attempts, the smallest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn

LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers"),
    *("num_decoder_layers", "encoder_layers", "decoder_layers", "num_hidden_groups"),
    *("num_blocks", "num_self_attends_per_block"),
)
WIDTHS = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner"), 128),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 128),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "d_latents": 64,
    "hidden_size_global": 64,
    "encoder_hidden_size": 64,
    "num_latents": 16,
}
# What the defaults of some leave open, and published configurations say.
UNSAID = {"vocab_size": 64, "num_experts_per_tok": 2}
# The same for one type of model or one class, and where classes are counted by another name.
PUBLISHED: dict[str, dict[str, Any]] = {
    "blip-2": {"image_token_index": 50265},
    # The widths of its words and of its patches hang together.
    "blt": {
        "encoder_config": {"hidden_size": 32, "num_attention_heads": 2},
        "decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 2, 2],
            }
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 5e5, "kv_n_heads": 2, "clip_qkv": 8}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_unified_assistant": {
        "text_config": {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        }
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "perceiver": {"num_cross_attention_heads": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_embds": False},
    "ReformerModelWithLMHead": {"axial_pos_embds": False, "is_decoder": True},
    "vjepa2": {"frames_per_clip": 4, "crop_size": 64},
    "xmod": {"default_language": "en_XX"},
}
COUNTED: dict[str, Callable[[int], dict[str, Any]]] = {
    "nemotron3_diarization": lambda number: {
        "head_config": {"num_speakers": number},
        "streaming_config": {"num_speakers": number},
    },
}


def parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, transformers.PretrainedConfig):
            yield from parts(value)


def shrink(config: Any, widths: bool) -> None:
    """Fewer layers, and with ``widths`` narrower ones; what a configuration lacks is left out."""
    for part in parts(config):
        held = vars(part)
        counts = ("num_attention_heads", "num_key_value_heads")
        alike = len({held.get(name) for name in counts}) == 1
        for name in LAYERS:
            if type(held.get(name)) is int:
                setattr(part, name, min(held[name], 2))
        for name, size in WIDTHS.items() if widths else ():
            if type(held.get(name)) is int:
                setattr(part, name, min(held[name], size))
        if alike and held.get(counts[0]):
            part.num_key_value_heads = part.num_attention_heads
        if widths and held.get("qk_head_dim"):
            part.qk_head_dim = part.qk_nope_head_dim + part.qk_rope_head_dim
        kinds = held.get("layer_types")
        if isinstance(kinds, list) and "num_hidden_layers" in held:
            # One layer of each kind at least: a mask is made for each. Those that share the keys
            # of others stand behind one of each.
            shared = min(held.get("num_kv_shared_layers") or 0, len(set(kinds)))
            if shared:
                part.num_kv_shared_layers = shared
            part.num_hidden_layers = max(part.num_hidden_layers, len(set(kinds)) + shared)
            part.layer_types = [*dict.fromkeys(kinds), *kinds][: part.num_hidden_layers]


def fill(config: Any) -> None:
    """What a default leaves open and a published configuration says."""
    for key, size in UNSAID.items():
        if getattr(config, key, 0) is None:
            setattr(config, key, size)
    # Read as they are kept: where the layers differ in one, asking for it raises.
    held = vars(config)
    heads = held.get("num_attention_heads")
    if heads and held.get("num_key_value_heads", 0) is None:
        config.num_key_value_heads = heads
    if heads and held.get("head_dim", 0) is None:
        config.head_dim = config.hidden_size // heads
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = getattr(config, "decoder_start_token_id", None) or 0


def configured(kind: Any, num_labels: int, widths: bool | None) -> Any:
    """A configuration of a class, with ``widths`` None as the library has it."""
    source = kind.config_class
    options = PUBLISHED.get(kind.__name__) or PUBLISHED.get(source.model_type, {})
    counted = COUNTED.get(source.model_type, lambda number: {"num_labels": number})
    config = source(**options, **counted(num_labels))
    if widths is not None:
        shrink(config, widths)
    fill(config)
    return config


def attempts(name: str, num_labels: int, largest: float) -> Iterator[nn.Module]:
    """Models of a class that could be constructed: small, shallow, and whole.

    They are on ``meta`` where they are not narrow and have more than ``largest`` parameters.

    Raises:
        Exception: whatever the first attempt raised.
    """
    kind = getattr(transformers, name)
    error: Exception | None = None
    built = 0
    for widths in (True, False, None):
        try:
            config = configured(kind, num_labels, widths)
            place = "cpu" if widths or count(kind, config) <= largest else "meta"
            with torch.device(place):
                model = kind(config)
        except Exception as raised:  # of any configuration: the next attempt shrinks less
            error = error or raised
            continue
        built += 1
        yield model
    if not built and error is not None:
        raise error


def count(kind: Any, config: Any) -> int:
    """How many parameters a model of a configuration would have."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(config).parameters())


def silence() -> None:
    """Let the library keep its remarks on configurations to itself."""
    transformers.logging.set_verbosity_error()
