from __future__ import annotations

import pytest
from torch import nn

from surgery.errors import ArgumentError, PluginError
from surgery.families import Catalog, Family, HeadClaim
from surgery.families.applied import heads_for
from surgery.families.registry import Registry
from surgery.heads import find_heads
from surgery.operations.target import resolve_target


class Part(nn.Linear):
    __module__ = "library.models.parts"


class Net(nn.Sequential):
    __module__ = "library.models.nets"

    def forward_features(self) -> None: ...


class Kin(Net):
    __module__ = "library.models.nets"


class Elsewhere(Kin):
    __module__ = "library_of_others.models"


def linears(asked: list[str]) -> Catalog:
    def names() -> list[str]:
        asked.append("names")
        return ["Linear", "Bilinear"]

    return Catalog(names, lambda name: f"torch.nn:{name}" if name.endswith("inear") else None)


def library(**options: object) -> Family:
    return Family(
        "library", ("library.*",), packages=("library",), marker="forward_features", **options
    )


def test_a_package_is_claimed_where_classes_have_the_marker():
    registry = Registry.of(family := library())
    assert registry.claim(Net()) is family
    assert registry.find_claim(Kin()).exact
    assert registry.claim(Part(2, 2)) is registry.claim(nn.Sequential()) is None
    claim = registry.find_claim(Elsewhere())
    assert (claim.family, claim.class_name, claim.exact) == (
        family,
        "library.models.nets.Kin",
        False,
    )


def test_a_closer_claim_beats_that_of_a_package():
    named = Family("net", ("library.models.nets.Net",))
    inner = Family("inner", ("library.models.*",), marker="forward_features")
    assert Registry.of(library(), named).claim(Net()) is named
    assert Registry.of(library(), named).claim(Kin()).name == "library"
    assert Registry.of(library(), inner).claim(Kin()) is inner


@pytest.mark.parametrize(("classes", "marker"), [("package.*", ""), ("*", "x"), ("a.*.b", "x")])
def test_a_pattern_is_a_package_and_wants_a_marker(classes: str, marker: str):
    with pytest.raises(PluginError, match="no qualified class name"):
        Family("library", (classes,), marker=marker)


def test_a_marker_is_a_name():
    with pytest.raises(PluginError, match="marker has a wrong type"):
        Family("library", ("package.*",), marker=3)


def test_a_catalog_is_listed_when_it_is_asked_and_once():
    asked: list[str] = []
    registry = Registry.of(library(catalog=linears(asked)))
    assert repr(registry.families[0])
    assert registry.families[0] == registry.families[0]
    assert resolve_target("library:Linear", registry).factory is nn.Linear
    assert asked == []
    assert registry.catalog_names == ("library:Linear", "library:Bilinear")
    assert len(registry.families[0].catalog) == 2
    assert asked == ["names"]


def test_a_name_that_is_not_listed_may_be_built():
    def find(name: str) -> object:
        return (lambda: nn.Linear(1, 1)) if name.endswith("/") else None

    registry = Registry.of(library(catalog=Catalog(list, find)))
    assert registry.catalog_names == ()
    assert isinstance(resolve_target("library:here/", registry).factory(), nn.Linear)


def test_a_listed_catalog_leaves_bare_names_to_others():
    other = Family("other", ("a.B",), catalog={"Linear": "torch.nn:Bilinear"})
    registry = Registry.of(library(catalog=linears([])), other)
    assert resolve_target("Linear", registry).factory is nn.Bilinear
    assert resolve_target("library:Linear", registry).factory is nn.Linear
    with pytest.raises(ArgumentError, match="library:Bilinear"):
        resolve_target("Bilinear", registry)


def test_a_catalog_that_cannot_be_listed_is_empty_and_says_so():
    def names() -> list[str]:
        raise OSError("no such folder")

    registry = Registry.of(library(catalog=Catalog(names, {"x": "a:b"}.get)))
    with pytest.warns(UserWarning, match="no such folder"):
        assert registry.catalog_names == ()


def test_heads_may_be_said_of_each_model():
    family = library(heads=lambda model: (HeadClaim(str(len(model) - 1)),))
    model = Net(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert heads_for(family, model) == (HeadClaim("2"),)
    (head,) = find_heads(model, registry=Registry.of(family))
    assert (head.address, head.corroborated) == ("2", True)
    with pytest.raises(PluginError, match="heads returned"):
        heads_for(library(heads=lambda model: ["2"]), model)
