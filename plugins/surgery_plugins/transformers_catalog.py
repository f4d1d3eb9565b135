"""The names that transformers builds for classes, from its own tables, and how."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from surgery_plugins.listing import folder

if TYPE_CHECKING:
    from torch import nn

# A model type stands for the first of these that it has.
TASKS = (
    *("SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"),
    *("AUDIO_CLASSIFICATION", "TOKEN_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION"),
)
TABLE = r"^MODEL_FOR_{}_MAPPING_NAMES = OrderedDict\(\s*(\[.*?^    \])\s*\)"


@functools.cache
def listed() -> Mapping[str, str]:
    """Classes by model type and by their own names, without importing the library."""
    auto = folder("transformers", "models", "auto")
    text = (auto / "modeling_auto.py").read_text("utf-8") if auto is not None else ""
    types: dict[str, str] = {}
    names: dict[str, str] = {}
    for task in TASKS:
        table = re.search(TABLE.format(task), text, re.MULTILINE | re.DOTALL)
        for kind, found in ast.literal_eval(table[1]) if table is not None else ():
            several = (found,) if isinstance(found, str) else found
            types.setdefault(kind, several[0])
            names |= {name: name for name in several}
    return {**types, **names}


def find(name: str) -> Callable[..., nn.Module] | None:
    """What builds a class, a model type, or the model of a directory with a ``config.json``."""
    if name in listed():
        return partial(of_class, listed()[name])
    return partial(of_directory, name) if Path(name, "config.json").is_file() else None


def of_class(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """A model of the class's own configuration, with options; no weights come from anywhere."""
    kind = resolve_name(f"transformers:{name}")
    labels = {} if num_classes is None else {"num_labels": num_classes}
    model: nn.Module = kind(kind.config_class(**options, **labels))
    return model


def of_directory(path: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """A model of the class and the configuration that a directory says, without its weights."""
    labels = {} if num_classes is None else {"num_labels": num_classes}
    read = resolve_name("transformers:AutoConfig.from_pretrained")
    config = read(path, local_files_only=True, **options, **labels)
    model: nn.Module = resolve_name(f"transformers:{config.architectures[0]}")(config)
    return model
