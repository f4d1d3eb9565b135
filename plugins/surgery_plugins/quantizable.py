"""The quantizable variants of torchvision's classifiers, and what to do with heads once quantised.

Each is a subclass of a model that another family claims, with the same parameters under the same
names: what is known of that one holds, and what differs is how they are built. A layer that torch
has quantised keeps its weights packed: as a head it is replaced by a float layer behind the
quantised trunk, as in torch's own recipe for quantised transfer learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from surgery.families import Family, HeadKind, hookimpl
from surgery_plugins import googlenet as _googlenet
from surgery_plugins import inception as _inception
from surgery_plugins import mobilenet, resnet, shufflenet
from surgery_plugins.building import builder

if TYPE_CHECKING:
    from torch import nn

TARGET = "torchvision.models.quantization"

# Left to themselves, these two warn that their initialisation is going to change to this one.
googlenet = builder(f"{TARGET}:googlenet", init_weights=False)
inception_v3 = builder(f"{TARGET}:inception_v3", init_weights=False)


def float_head(layer: Any, num_classes: int) -> nn.Module:
    """A float layer that takes what the quantised one takes, and gives floats.

    A layer that is quantised dynamically takes floats, and is followed as it stands.
    """
    from torch import nn
    from torch.ao.nn import quantized

    bias = layer.bias() is not None
    if hasattr(layer, "in_features"):
        new: nn.Module = nn.Linear(layer.in_features, num_classes, bias)
    else:
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        form = {name: getattr(layer, name) for name in names}
        kind = getattr(nn, f"Conv{len(layer.kernel_size)}d")
        new = kind(layer.in_channels, num_classes, bias=bias, **form)
    first = () if ".dynamic." in type(layer).__module__ else (quantized.DeQuantize(),)
    last = (nn.ReLU(),) if "ReLU" in type(layer).__name__ else ()
    return nn.Sequential(*first, new, *last) if first or last else new


def _variant(base: Family, cls: str, *names: str, module: str = TARGET) -> Family:
    """A family for the quantizable subclass of one that another family claims."""
    return replace(
        base,
        name=f"quantizable_{base.name}",
        classes=(f"{TARGET}.{cls}",),
        catalog={f"quantized_{name}": f"{module}:{name}" for name in names},
    )


FAMILIES = (
    _variant(
        resnet.FAMILY,
        "resnet.QuantizableResNet",
        "resnet18",
        "resnet50",
        "resnext101_32x8d",
        "resnext101_64x4d",
    ),
    _variant(
        shufflenet.FAMILY,
        "shufflenetv2.QuantizableShuffleNetV2",
        *(f"shufflenet_v2_{width}" for width in ("x0_5", "x1_0", "x1_5", "x2_0")),
    ),
    _variant(mobilenet.V2, "mobilenetv2.QuantizableMobileNetV2", "mobilenet_v2"),
    _variant(mobilenet.V3, "mobilenetv3.QuantizableMobileNetV3", "mobilenet_v3_large"),
    _variant(_googlenet.FAMILY, "googlenet.QuantizableGoogLeNet", "googlenet", module=__name__),
    _variant(_inception.FAMILY, "inception.QuantizableInception3", "inception_v3", module=__name__),
)

QUANTISED = HeadKind(
    name="quantised layer",
    classes=(
        "torch.ao.nn.quantized.modules.linear.Linear",
        *(f"torch.ao.nn.quantized.modules.conv.Conv{dimensions}d" for dimensions in (1, 2, 3)),
    ),
    rebuild=float_head,
)


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register one family for each."""
    return FAMILIES


@hookimpl
def surgery_head_kinds() -> Sequence[HeadKind]:
    """Register the layers that torch quantises."""
    return [QUANTISED]
