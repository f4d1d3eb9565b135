"""Words for the models of transformers that read, and what their tasks make of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Words in a text, and answers to choose from where that is the task.
WORDS, CHOICES = 16, 3
WRITING = ("ForConditionalGeneration", "EncoderDecoderModel", "MTModel", "ForTextToText")
PAIRS = ("QuestionAnswering", "MultipleChoice")
# What reads the codes of several books at once, in rows of their own.
BOOKS = ("Musicgen",)


def looked_at(config: Any, weight: Tensor, rows: int) -> dict[str, Any]:
    """Regions of an image that another model saw, for what reads with them at hand."""
    sizes = (getattr(config, "visual_feat_dim", None), getattr(config, "visual_pos_dim", None))
    names = ("visual_feats", "visual_pos")
    return {
        name: weight.new_zeros(rows, 2, size)
        for name, size in zip(names, sizes, strict=True)
        if size is not None
    }


def text(model: Any, config: Any, weight: Tensor) -> dict[str, Any] | None:
    """Words, with what is known of an image; nothing for what must look at one itself."""
    others = {*getattr(model, "input_modalities", ("text",))} - {"text", *"text"}
    seen = looked_at(config.get_text_config(), weight, 2)
    takes = inspect.signature(model.forward).parameters
    if "shared_kv_states" in takes:
        return taken_over(config, weight)
    # What writes on may be asked in words alone.
    if others and not seen and "past_key_values" not in takes:
        return None
    given = written(model, config, weight)
    if "encoder_past_key_values" in takes:
        # What writes while it hears is told so much sound for every word.
        length = WORDS * config.audio_length_per_tok
        sizes = (len(given["input_ids"]), config.audio_config.num_mel_bins, length)
        given["input_features"] = weight.new_zeros(sizes)
    return {**given, **seen}


def written(model: Any, config: Any, weight: Tensor) -> dict[str, Any]:
    """Words that are no special ones, the last of them the end; no mask but the whole text."""
    config = config.get_text_config()
    keys = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
    special = {key: getattr(config, key, None) for key in keys}
    word = next(n for n in range(1, 32) if n not in special.values())
    rows = 1 if special["pad_token_id"] is None else 2
    ids = words(weight, rows, word)
    end = special["eos_token_id"]
    if isinstance(end, int) and 0 <= end < (getattr(config, "vocab_size", None) or 0):
        ids[:, -1] = end
    between = special["sep_token_id"]
    if type(model).__name__.endswith(PAIRS) and isinstance(between, int):
        # Some look for where the question ends and what may answer it begins.
        ids[:, [WORDS // 3, WORDS // 3 + 1, -1]] = between
    # Where a word stands on a page is asked for by some; what does not ask is not given it.
    places = ids.new_zeros(rows, WORDS, 4)
    whole = ids.clone().fill_(1)
    if type(model).__name__.startswith(BOOKS):
        ids = ids.repeat_interleave(getattr(config, "num_codebooks", 1), 0)
    return {"input_ids": ids, "attention_mask": whole, "bbox": places}


def taken_over(config: Any, weight: Tensor) -> dict[str, Any]:
    """What another model made of two texts, and the keys and values of its last layers."""
    layers = config.get_text_config().per_layer_config

    def states(kind: str) -> Tensor:
        return weight.new_zeros(2, layers[kind].num_key_value_heads, WORDS, layers[kind].head_dim)

    return {
        "inputs_embeds": weight.new_zeros(2, WORDS, 2 * config.backbone_hidden_size),
        "shared_kv_states": {
            kind: (states(kind), states(kind))
            for kind in dict.fromkeys(config.get_text_config().layer_types)
        },
    }


def words(weight: Tensor, rows: int, word: int = 1, length: int = WORDS) -> Tensor:
    """The same word over and over, with values also where a model on meta has none."""
    import torch

    place = "cpu" if weight.is_meta else weight.device
    return torch.full((rows, length), word, dtype=torch.int64, device=place)


def asked(task: str, given: dict[str, Any], weight: Tensor) -> dict[str, Any]:
    """What a model of a class is given: some write as well as read, some choose an answer."""
    if task.endswith(WRITING):
        return {**given, "decoder_input_ids": words(weight, 2)}
    if not task.endswith("MultipleChoice"):
        return given
    return {
        key: each.repeat_interleave(CHOICES, 0).unflatten(0, (-1, CHOICES))
        for key, each in given.items()
    }
