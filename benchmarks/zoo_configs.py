"""Small configurations of transformers' classes: the same code, few layers, narrow ones.

What depends on what differs by architecture, so there are several attempts, the smallest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn

LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers"),
    *("num_decoder_layers", "encoder_layers", "decoder_layers", "num_hidden_groups"),
)
WIDTHS = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner"), 128),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 128),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
}
# What the defaults of some leave open, and published configurations say.
UNSAID = {"vocab_size": 64, "num_experts_per_tok": 2}


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
        for name in LAYERS:
            if type(held.get(name)) is int:
                setattr(part, name, min(held[name], 2))
        for name, size in WIDTHS.items() if widths else ():
            if type(held.get(name)) is int:
                setattr(part, name, min(held[name], size))
        kinds = held.get("layer_types")
        if isinstance(kinds, list):
            part.layer_types = kinds[: held.get("num_hidden_layers", len(kinds))]


def attempts(name: str, num_labels: int) -> Iterator[nn.Module]:
    """Models of a class that could be constructed: small, shallow, and whole on ``meta``.

    Raises:
        Exception: whatever the first attempt raised.
    """
    kind = getattr(transformers, name)
    error: Exception | None = None
    built = 0
    for widths in (True, False, None):
        config = kind.config_class(num_labels=num_labels)
        # Published configurations say it; the defaults of some do not.
        if getattr(config, "is_encoder_decoder", False):
            config.decoder_start_token_id = getattr(config, "decoder_start_token_id", None) or 0
        for key, size in UNSAID.items():
            if getattr(config, key, 0) is None:
                setattr(config, key, size)
        if widths is not None:
            shrink(config, widths)
        try:
            with torch.device("cpu" if widths else "meta"):
                model = kind(config)
        except Exception as raised:  # of any configuration: the next attempt shrinks less
            error = error or raised
            continue
        built += 1
        yield model
    if not built and error is not None:
        raise error


def silence() -> None:
    """Let the library keep its remarks on configurations to itself."""
    transformers.logging.set_verbosity_error()
