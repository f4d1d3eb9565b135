"""The models of the zoo by library: their names, how they are built, and what they are given.

A library with a plugin gets its example from there. Of the others the graph alone must find the
heads, with an example that is inferred, or given here where forward takes more than an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import efficientnet_pytorch
import open_clip
import segmentation_models_pytorch
import timm
import torch
import torch_geometric.nn
from surgery_plugins import timm as timm_plugin
from surgery_plugins import transformers as transformers_plugin
from surgery_plugins.transformers_catalog import listed
from torch import nn

import surgery
from benchmarks.heads import CLASSES as DISTINCT
from benchmarks.heads import truth
from benchmarks.zoo_configs import attempts
from surgery.errors import SurgeryError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.recording import resolve_example

REGISTRY = Registry.of(timm_plugin.FAMILY, transformers_plugin.FAMILY)
ALONE = Registry.of()
BACKBONES = ("resnet18", "mobilenet_v2")
FOREIGN = frozenset({"hf_model_name", "hf_tokenizer_name", "multimodal_cfg"})
# What makes the classes, by the code of the last layer: its other parts have as many outputs.
GRAPHS = {
    "GCN": {"convs.2.lin"},
    "GraphSAGE": {"convs.2.lin_l", "convs.2.lin_r"},
    "GIN": {"convs.2.nn.lins.1"},
    "GAT": {"convs.2.lin"},
    "PNA": {"convs.2.lin"},
    "EdgeCNN": {"convs.2.nn.lins.1"},
}

Built = tuple[nn.Module, Example]


@dataclass(frozen=True)
class Library:
    """Models of one library.

    Attributes:
        names: of its models; those of libraries without a plugin say the library first.
        build: a model and its example, from a name and the most parameters to make for real.
        registry: the plugins that know it.
        package: what is installed.
    """

    names: Callable[[], tuple[str, ...]]
    build: Callable[[str, float], Built]
    registry: Registry
    package: str


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def placed(build: Callable[[], nn.Module], largest: float) -> nn.Module:
    """For real where it is small enough, or where its constructor computes on its weights."""
    with torch.device("meta"):
        try:
            small = count(build()) <= largest
        except (NotImplementedError, RuntimeError):
            small = True
    with torch.device("cpu" if small else "meta"):
        return build()


def of_timm(name: str, largest: float) -> Built:
    """With as many classes as nothing else, or without any where timm builds it so."""
    headless = timm.get_pretrained_cfg(name, allow_unregistered=True).num_classes == 0
    options = {} if headless else {"num_classes": DISTINCT}
    model = placed(functools.partial(timm.create_model, name, **options), largest)
    return model, resolve_example(model, registry=REGISTRY)


def of_transformers(name: str, largest: float) -> Built:
    """The smallest that can be built and recorded."""
    error: Exception | None = None
    for model in attempts(name, DISTINCT, largest):
        try:
            example = resolve_example(model, registry=REGISTRY)
            surgery.record(model, example)
        except SurgeryError as raised:
            error = error or raised
            continue
        return model, example
    raise error or RuntimeError("nothing was built")


def of_efficientnet(name: str, largest: float) -> Built:
    kind = efficientnet_pytorch.EfficientNet
    short = name.partition(":")[2]
    model = placed(functools.partial(kind.from_name, short, num_classes=DISTINCT), largest)
    # Its padding is counted for images of one size.
    side = kind.get_image_size(short)
    return model, Example.of(torch.zeros(2, 3, side, side))


def of_segmentation(name: str, largest: float) -> Built:
    kind, _, backbone = name.partition(":")[2].partition("/")
    make = functools.partial(
        getattr(segmentation_models_pytorch, kind),
        "tu-vit_tiny_patch16_224" if kind == "DPT" else backbone,
        encoder_weights=None,
        classes=DISTINCT,
    )
    side = 224 if kind == "DPT" else 128
    return placed(make, largest), Example.of(torch.zeros(2, 3, side, side))


def of_open_clip(name: str, largest: float) -> Built:
    """What sees images; the layer that makes its embedding stands for a head."""
    short = name.partition(":")[2]
    make: Any = open_clip.create_model
    # The words are made as well, and moved only when they are: not for real in between.
    with torch.device("meta"):
        tower = make(short, embed_dim=DISTINCT, device="meta").visual
    if count(tower) <= largest:
        tower = make(short, embed_dim=DISTINCT, device="cpu").visual
    height, width = open_clip.transform.to_2tuple(tower.image_size)
    return tower, Example.of(torch.zeros(2, 3, height, width))


def of_geometric(name: str, largest: float) -> Built:
    """Six nodes in a ring, one of them with two more edges."""
    options: Mapping[str, Any] = {}
    if name.endswith("PNA"):
        degrees = torch.tensor([0, 1, 4, 1])
        options = {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": degrees}
    kind = getattr(torch_geometric.nn, name.partition(":")[2])
    model = kind(16, 24, num_layers=3, out_channels=DISTINCT, **options)
    starts = torch.tensor([0, 1, 2, 3, 4, 5, 0, 2])
    edges = torch.stack([starts, torch.tensor([1, 2, 3, 4, 5, 0, 3, 5])])
    return model, Example((torch.randn(6, 16), edges))


def makes_classes(name: str, model: nn.Module) -> set[str]:
    """The layers that make the classes."""
    library, _, kind = name.partition(":")
    if library == "geometric":
        return GRAPHS[kind]
    found = truth(model)
    # Not what holds the layer, and says its size as well.
    found -= {name for name in found if any(other.startswith(f"{name}.") for other in found)}
    if library == "open_clip":
        # Some keep the weight of their last product without a layer around it.
        found |= {n for n, p in model.named_parameters() if n == "proj" and p.shape[1] == DISTINCT}
    if len(found) > 1 and timm.is_model(name):
        # A pruned network may have as many channels somewhere.
        with torch.device("meta"):
            other = timm.create_model(name, num_classes=DISTINCT + 1)
        found -= truth(other)
    return found


def _open_clip() -> tuple[str, ...]:
    """All whose words need no other library's files, and whose embedding may have any size."""
    every = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    return tuple(
        f"open_clip:{name}"
        for name, parts in every.items()
        if not FOREIGN & {*parts, *parts["text_cfg"]}
    )


def _segmentation() -> tuple[str, ...]:
    kinds = segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING.values()
    names = sorted(kind.__name__ for kind in kinds)
    return tuple(f"smp:{n}/{b}" for n in names for b in (BACKBONES[: 1 if n == "DPT" else None]))


LIBRARIES = {
    "timm": Library(lambda: tuple(sorted(timm.list_models())), of_timm, REGISTRY, "timm"),
    "transformers": Library(
        lambda: tuple(sorted(set(listed().values()))), of_transformers, REGISTRY, "transformers"
    ),
    "efficientnet-pytorch": Library(
        lambda: tuple(f"efficientnet:{n}" for n in efficientnet_pytorch.model.VALID_MODELS),
        of_efficientnet,
        ALONE,
        "efficientnet_pytorch",
    ),
    "segmentation-models": Library(
        _segmentation, of_segmentation, ALONE, "segmentation_models_pytorch"
    ),
    "open_clip": Library(_open_clip, of_open_clip, ALONE, "open_clip_torch"),
    "torch-geometric": Library(
        lambda: tuple(f"geometric:{n}" for n in GRAPHS), of_geometric, ALONE, "torch_geometric"
    ),
}
