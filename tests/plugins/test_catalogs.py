"""Every family that ships: the contract, what the catalogs cover, and what loading them costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from torchvision.models import list_models

from surgery.families import Catalog, Family
from surgery.families.registry import Registry
from surgery.heads import find_heads
from surgery.testing import check_family

ROOT = Path(__file__).parents[2]
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
REGISTRY = Registry.load([EntryPoint(*point, "surgery") for point in POINTS["surgery"].items()])
# Those of a library whose catalog is listed when asked have tests of their own.
FAMILIES = {f.name: f for f in REGISTRY.families if not isinstance(f.catalog, Catalog)}

# One model of each sort; the others are of the same code, and run with the slow tests.
QUICK = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("efficientnet-b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf"),
    *("resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11", "vgg11_bn", "vit_b_32"),
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn_v2"),
    *("keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2"),
    *("fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
    *("fcn_resnet50_aux", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"),
    *("deeplabv3_mobilenet_v3_large_aux", "lraspp_mobilenet_v3_large"),
    *("r3d_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "raft_large"),
    *("quantized_googlenet", "quantized_inception_v3", "quantized_mobilenet_v2"),
    *("quantized_mobilenet_v3_large", "quantized_resnet18", "quantized_shufflenet_v2_x0_5"),
}


def build(family: Family, name: str) -> torch.nn.Module:
    return resolve_name(family.catalog[name])()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_its_word_on_a_model_of_each_sort(name: str):
    family = FAMILIES[name]
    models = {model: partial(build, family, model) for model in family.catalog if model in QUICK}
    assert check_family(family, registry=REGISTRY, models=models) == tuple(models)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    FAMILIES,
)
def test_a_family_keeps_its_word_on_every_model(name: str):
    family = FAMILIES[name]
    assert check_family(family, registry=REGISTRY) == tuple(family.catalog)


def test_every_model_of_torchvision_is_in_one_catalog():
    covered = Counter(model for family in FAMILIES.values() for model in family.catalog)
    assert {name: times for name, times in covered.items() if times > 1} == {}
    assert set(list_models()) - set(covered) == set()


def test_what_a_catalog_adds_to_torchvision_is_another_package_or_an_option():
    added = {name: set(f.catalog) - set(list_models()) for name, f in FAMILIES.items()}
    assert {name for name, models in added.items() if models} == {
        "efficientnet_pytorch",
        "segmentation",
    }
    assert all(model.endswith("_aux") for model in added["segmentation"])


def test_every_plugin_is_registered_and_no_two_families_claim_one_class():
    files = (ROOT / "plugins" / "surgery_plugins").glob("*.py")
    hooked = {file.stem for file in files if "\n@hookimpl\n" in file.read_text("utf-8")}
    assert {plugin.name for plugin in REGISTRY.plugins} == hooked
    assert (REGISTRY.failures, REGISTRY.conflicts) == ((), ())
    assert len({family.name for family in REGISTRY.families}) == len(REGISTRY.families)


def test_building_downloads_nothing(monkeypatch: pytest.MonkeyPatch):
    def load(url: str, *args: object, **kwargs: object) -> None:
        raise AssertionError(f"downloads {url}")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    with pytest.raises(AssertionError, match="downloads"):
        resolve_name("torchvision.models:squeezenet1_1")(weights="DEFAULT")
    with torch.device("meta"):
        for name in ("segmentation", "lraspp"):
            for model in FAMILIES[name].catalog:
                build(FAMILIES[name], model)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("googlenet", "googlenet"),
        ("quantizable_inception", "quantized_inception_v3"),
        ("segmentation", "fcn_resnet50_aux"),
        ("efficientnet_pytorch", "efficientnet-b0"),
    ],
)
def test_a_builder_takes_the_options_of_what_it_builds(name: str, model: str):
    with torch.device("meta"):
        made = resolve_name(FAMILIES[name].catalog[model])(num_classes=7)
    assert {head.num_classes for head in find_heads(made, registry=REGISTRY)} == {7}


LOAD = """
import json, sys
from importlib.metadata import EntryPoint
from surgery.families.registry import Registry

registry = Registry.load([EntryPoint(*point, "surgery") for point in json.loads(sys.argv[1])])
assert registry.plugins and not registry.failures and not registry.conflicts
registry.catalog_names
packages = {name for family in registry.families for name in family.packages}
imported = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(imported & {"torch", "numpy", *packages})))

from torch import nn

found = [
    family.name
    for family in registry.families
    for name in family.classes
    if registry.claim(
        type(
            name.rpartition(".")[2],
            (nn.Module,),
            {"__module__": name.rpartition(".")[0], family.marker or "x": None},
        )()
    ) is family
]
assert found == [family.name for family in registry.families for name in family.classes]
print(json.dumps(sorted(packages & set(sys.modules))))
"""


def test_loading_and_recognising_imports_no_framework():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD, json.dumps([*POINTS["surgery"].items()])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"},
    )
    assert done.returncode == 0, done.stderr
    loaded, recognised = map(json.loads, done.stdout.splitlines())
    assert loaded == []
    assert recognised == []
