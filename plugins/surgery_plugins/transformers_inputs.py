"""Example inputs of transformers' models, by the name of their main input and their configuration.

What is not plain here is left to inference: the graph route tries what ``forward`` takes.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.graph.example import Example

# Words in a text, samples of sound and frames of features: enough for any stride, and few.
WORDS, SAMPLES, FRAMES = 16, 16000, 64


def example(model: Any) -> Example | None:
    """Two samples; one for a text model that cannot pad and so takes no batch."""
    from surgery.graph.example import Example

    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    makes = {
        "input_ids": text,
        "pixel_values": images,
        "pixel_values_videos": images,
        "input_values": sound,
        "input_features": features,
    }
    name = model.main_input_name
    if weight is None or name not in makes:
        return None
    given = makes[name](model, model.config, weight)
    if given is None:
        return None
    known = inspect.signature(model.forward).parameters
    # What is kept for the next word is no output that anybody trains.
    given["use_cache"] = False
    return Example((), {key: value for key, value in given.items() if key in known})


def text(model: Any, config: Any, weight: Tensor) -> dict[str, Any] | None:
    """Words that are no special ones, the last of them the end; no mask but the whole text."""
    config = config.get_text_config()
    if getattr(model, "input_modalities", "text") not in ("text", ("text",), ["text"]):
        return None
    keys = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
    special = {key: getattr(config, key, None) for key in keys}
    word = next(n for n in range(1, 32) if n not in special.values())
    rows = 1 if special["pad_token_id"] is None else 2
    words = weight.new_empty((rows, WORDS), dtype=_integers(), device=_real(weight)).fill_(word)
    end = special["eos_token_id"]
    if isinstance(end, int) and 0 <= end < (getattr(config, "vocab_size", None) or 0):
        words[:, -1] = end
    # Where a word stands on a page is asked for by some; what does not ask is not given it.
    places = words.new_zeros(rows, WORDS, 4)
    return {"input_ids": words, "attention_mask": words.clone().fill_(1), "bbox": places}


def images(model: Any, config: Any, weight: Tensor) -> dict[str, Any] | None:
    """Images, or for a model of videos as many as it takes frames."""
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3
    counted = () if frames is None else (frames,)
    name = model.main_input_name
    return {name: weight.new_zeros(2, *counted, channels, height, width)}


def sound(model: Any, config: Any, weight: Tensor) -> dict[str, Any] | None:
    """A wave; a spectrogram where the configuration counts its bins."""
    bins = getattr(config, "num_mel_bins", None)
    if bins is None:
        return {"input_values": weight.new_zeros(2, SAMPLES)}
    length = getattr(config, "max_length", None)
    return None if length is None else {"input_values": weight.new_zeros(2, length, bins)}


def features(model: Any, config: Any, weight: Tensor) -> dict[str, Any] | None:
    """Features of sound: as long as the encoder has positions for, or any length."""
    positions = getattr(config, "max_source_positions", None)
    bins = getattr(config, "num_mel_bins", None)
    wide = getattr(config, "feature_projection_input_dim", None)
    if wide is not None:
        return {"input_features": weight.new_zeros(2, FRAMES, wide)}
    if positions is None or bins is None:
        return None
    return {"input_features": weight.new_zeros(2, bins, 2 * positions)}


def _integers() -> Any:
    from torch import int64

    return int64


def _real(weight: Tensor) -> Any:
    """Where numbers of words have values: not on meta, where a model without weights is."""
    return "cpu" if weight.is_meta else weight.device
