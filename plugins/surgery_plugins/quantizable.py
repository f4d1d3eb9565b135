"""The quantizable variants of torchvision's classifiers, before they are quantised.

Each is a subclass of a model that another family claims, with the same parameters under the same
names: what is known of that one holds, and what differs is how they are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from surgery.families import Family, hookimpl
from surgery_plugins import googlenet as _googlenet
from surgery_plugins import inception as _inception
from surgery_plugins import mobilenet, resnet, shufflenet
from surgery_plugins.building import builder

TARGET = "torchvision.models.quantization"

# Left to themselves, these two warn that their initialisation is going to change to this one.
googlenet = builder(f"{TARGET}:googlenet", init_weights=False)
inception_v3 = builder(f"{TARGET}:inception_v3", init_weights=False)


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


@hookimpl
def surgery_families() -> Sequence[Family]:
    """Register one family for each."""
    return FAMILIES
