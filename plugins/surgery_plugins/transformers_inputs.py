"""Example inputs of transformers' models, by the name of their main input and their configuration.

What is not plain here is left to inference: the graph route tries what ``forward`` takes.
"""

from __future__ import annotations

import inspect
from math import isqrt
from typing import TYPE_CHECKING, Any

from surgery_plugins.transformers_words import asked, text, words, written

if TYPE_CHECKING:
    from torch import Tensor

    from surgery.graph.example import Example

# Samples of sound and frames of features: enough for any stride, and few.
SAMPLES, FRAMES = 16000, 64


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
    takes = inspect.signature(model.forward).parameters
    if name == "pixel_values" and "input_ids" in takes and required(takes["input_ids"]):
        given = {**written(model, model.config, weight), **given}
    known = {*takes}
    given = asked(type(model).__name__, given, weight)
    # What is kept for the next word is no output that anybody trains; what classifies hands the
    # wish on to the model that reads.
    given["use_cache"] = False
    if "kwargs" in known and any(map(caches, model.modules())):
        known.add("use_cache")
    return Example((), {key: value for key, value in given.items() if key in known})


def required(parameter: inspect.Parameter) -> bool:
    """Whether a call must name it."""
    return parameter.default is parameter.empty


def caches(part: Any) -> bool:
    """Whether a part is a model of the library that may keep what it read."""
    is_model = hasattr(part, "base_model_prefix")
    return is_model and "use_cache" in inspect.signature(part.forward).parameters


def images(model: Any, config: Any, weight: Tensor) -> dict[str, Any] | None:
    """Images, or for a model of videos as many as it takes frames."""
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3
    if "spatial_shapes" in inspect.signature(model.forward).parameters:
        return patches(config, weight, channels)
    counted = () if frames is None else (frames,)
    name = model.main_input_name
    return {name: weight.new_zeros(2, *counted, channels, height, width)}


def patches(config: Any, weight: Tensor, channels: int) -> dict[str, Any]:
    """Images cut into patches, as many as there are positions for, and how they lie."""
    side = isqrt(config.num_patches)
    mask = words(weight, 2, length=side * side)
    return {
        "pixel_values": weight.new_zeros(2, side * side, channels * config.patch_size**2),
        "pixel_attention_mask": mask,
        "spatial_shapes": mask.new_full((2, 2), side),
    }


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
