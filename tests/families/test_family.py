"""The values validate themselves, and each error names the family and the field."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import ClaimContradictedError, NoHeadError, PluginError
from surgery.families import Family, HeadClaim, HeadKind, WeightReader
from surgery.families.applied import attribute, blocks_for, example_for, is_headless, stages_for
from surgery.families.family import contradicted, overlaps
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.heads import find_heads

GOOD = {
    "name": "tinynet",
    "classes": ("tinynet.TinyNet",),
    "packages": ("tinynet",),
    "example": (2, "stem.in_channels", 32, 32),
    "heads": (HeadClaim("classifier"), HeadClaim("boxes", "coupled", factor=4)),
    "stages": (("block1",), ("block2", "norm")),
    "stem": ("stem",),
    "sync": ("num_classes", "config.num_labels"),
    "renames": {"old": ((r"^features\.(\d)", r"block\1"),)},
    "catalog": {"tinynet": "tinynet:TinyNet", "tinynet2": "tinynet.models:TinyNet.wide"},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, 3, 3, dtype=torch.bfloat16)
        self.body = nn.Sequential(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("name", "", "''"),
        ("name", "two words", "two words"),
        ("name", 3, "3"),
        ("classes", "tinynet.TinyNet", "'tinynet.TinyNet'"),
        ("classes", (), "()"),
        ("classes", ["tinynet.TinyNet"], "['tinynet.TinyNet']"),
        ("classes", ("TinyNet",), "TinyNet"),
        ("classes", ("tinynet:TinyNet",), "tinynet:TinyNet"),
        ("classes", ("tinynet..TinyNet",), "tinynet..TinyNet"),
        ("classes", ("tinynet.TinyNet", "tinynet.TinyNet"), "stands twice"),
        ("classes", (nn.Linear,), "Linear"),
        ("packages", "tinynet", "'tinynet'"),
        ("packages", ("tiny-net",), "tiny-net"),
        ("packages", ("tinynet.models",), "tinynet.models"),
        ("example", (), "()"),
        ("example", [2, 3], "[2, 3]"),
        ("example", (2, 0), "(2, 0)"),
        ("example", (2, True), "(2, True)"),
        ("example", torch.zeros(1), "tensor"),
        ("heads", HeadClaim("fc"), "HeadClaim"),
        ("heads", ("fc",), "('fc',)"),
        ("heads", (HeadClaim("fc"), HeadClaim("fc", "aux")), "overlap"),
        ("heads", (HeadClaim("fc"), HeadClaim("fc.1")), "overlap"),
        ("stages", ("layer1",), "'layer1'"),
        ("stages", ((),), "()"),
        ("stages", (("a", "a"),), "stands twice"),
        ("stages", (("a",), ("a.b",)), "overlap"),
        ("stages", (("",),), "''"),
        ("blocks", ("layer1",), "'layer1'"),
        ("blocks", (("a",), ("a.b",)), "overlap"),
        ("blocks", (("a",), ("a",)), "overlap"),
        ("stem", ("block1",), "overlap"),
        ("stem", "conv1", "'conv1'"),
        ("sync", ("a..b",), "'a..b'"),
        ("sync", ("num_classes", "num_classes"), "stands twice"),
        ("renames", (("a", "b"),), "('a', 'b')"),
        ("renames", {"old": [("a", "b")]}, "[('a', 'b')]"),
        ("renames", {"old": (("a",),)}, "('a',)"),
        ("renames", {"old": (("(", "b"),)}, "unterminated"),
        ("renames", {"old": (("a", r"\1"),)}, "invalid group reference"),
        ("renames", {"old": ((r"(?P<n>a)", r"\g<m>"),)}, "unknown group name"),
        ("catalog", ["tinynet"], "['tinynet']"),
        ("catalog", {"": "a:b"}, "{'': 'a:b'}"),
        ("catalog", {"tinynet": "tinynet.TinyNet"}, "tinynet.TinyNet"),
        ("catalog", {"tinynet": "tinynet:"}, "tinynet:"),
        ("catalog", {"tinynet": nn.Linear}, "Linear"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, found: str):
    with pytest.raises(PluginError) as caught:
        Family(**{**GOOD, field: value})
    error = caught.value
    where = "Family.name" if field == "name" else "Family('tinynet')"
    assert error.where.startswith(where)
    assert field in error.where
    assert found in str(error)
    assert error.fix


def test_a_good_family_keeps_what_it_was_given():
    family = Family(**GOOD)
    assert {field: getattr(family, field) for field in GOOD} == GOOD
    assert family == Family(**GOOD)
    assert hash(family) == hash(Family(**GOOD))
    assert pickle.loads(pickle.dumps(family)) == copy.deepcopy(family) == family


def test_a_family_is_not_changed_through_the_dict_it_was_made_from():
    catalog = {"tinynet": "tinynet:TinyNet"}
    family = Family("tinynet", ("tinynet.TinyNet",), catalog=catalog)
    catalog["other"] = "nonsense"
    assert family.catalog == {"tinynet": "tinynet:TinyNet"}


def test_rules_may_use_inline_flags_alternatives_and_named_groups():
    rules = ((r"(?i)^(?P<n>A)|(b)", r"\g<n>"), ("x(?=y)", ""))
    assert Family("tinynet", ("a.B",), renames={"old": rules}).renames["old"] == rules


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("",), "address"),
        (("a..b",), "address"),
        ((None,), "address"),
        (("fc", "side"), "role"),
        (("fc", "main", 0), "factor"),
        (("fc", "main", True), "factor"),
        (("fc", "main", 1.0), "factor"),
    ],
)
def test_a_wrong_head_claim_is_named(arguments: tuple[object, ...], field: str):
    with pytest.raises(PluginError) as caught:
        HeadClaim(*arguments)
    assert f"HeadClaim({arguments[0]!r}).{field}" == caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize("sync", ["num_classes", ["num_classes"], (1,), ("a", "a"), None])
def test_a_wrong_sync_is_said_alike_of_a_claim_and_of_a_family(sync: object):
    with pytest.raises(PluginError) as claimed:
        HeadClaim("fc", sync=sync)
    with pytest.raises(PluginError) as family:
        Family("fc", ("a.B",), sync=sync)
    assert claimed.value.where == "HeadClaim('fc').sync"
    assert family.value.where == "Family('fc').sync"
    assert claimed.value.fix == family.value.fix
    said = str(family.value).replace("family", "HeadClaim").replace("Family", "HeadClaim")
    assert str(claimed.value) == said


def test_a_claim_covers_what_lies_inside_and_no_namesake():
    claim = HeadClaim("fc")
    covered = [x for x in ("fc", "fc.2", "fc2", "fc2.fc", "a.fc", "") if claim.covers(x)]
    assert covered == ["fc", "fc.2"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeadKind("", ("a.B",), rebuild=print),
        lambda: HeadKind("k", "a.B", rebuild=print),
        lambda: HeadKind("k", (), rebuild=print),
        lambda: HeadKind("k", ("a.B", "a.B"), rebuild=print),
        lambda: HeadKind("k", ("a.B",), rebuild="print"),
        lambda: WeightReader("", (".a",), sniff=print, open=print),
        lambda: WeightReader("r", ".a", sniff=print, open=print),
        lambda: WeightReader("r", ("a",), sniff=print, open=print),
        lambda: WeightReader("r", (".",), sniff=print, open=print),
        lambda: WeightReader("r", (".a",), sniff=None, open=print),
        lambda: WeightReader("r", (".a",), sniff=print, open=None),
    ],
)
def test_a_wrong_head_kind_or_reader_is_named(make):
    with pytest.raises(PluginError) as caught:
        make()
    assert re.match(r"(HeadKind|WeightReader)[.(]", caught.value.where)
    assert caught.value.fix


def test_overlaps_are_symmetric():
    places = [("a", "x"), ("b", "x.y"), ("c", "xy"), ("d", "x")]
    found = {(one[0], two[0]) for one, two in overlaps(places)}
    assert found == {("a", "b"), ("a", "d"), ("b", "d")}
    assert {(two[0], one[0]) for one, two in overlaps(places[::-1])} == found


def test_an_example_follows_the_model_in_size_dtype_and_device():
    family = Family(**GOOD)
    model = Net()
    (tensor,) = example_for(family, model).args
    assert (tuple(tensor.shape), tensor.dtype) == ((2, 5, 32, 32), torch.bfloat16)
    (tensor,) = example_for(family, model.to("meta")).args
    assert tensor.device.type == "meta"
    (tensor,) = example_for(family, nn.DataParallel(Net())).args
    assert tensor.shape[1] == 5
    plain = Family("plain", ("a.B",), example=(1, 2))
    assert example_for(plain, nn.ReLU()).args[0].dtype == torch.get_default_dtype()


def test_an_example_draws_no_random_number():
    model = Net()
    before = torch.get_rng_state()
    example_for(Family(**GOOD), model)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_example_may_be_a_callable():
    family = Family(
        "f", ("a.B",), example=lambda model: Example((torch.ones(model.stem.kernel_size),))
    )
    assert example_for(family, Net()).args[0].shape == (3, 3)
    assert example_for(Family("f", ("a.B",)), Net()) is None


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ((2, "stem.depth"), "nothing"),
        ((2, "no.such"), "nothing"),
        ((2, "stem.padding_mode"), "'zeros'"),
        ((2, "training"), "True"),
        (lambda model: torch.zeros(2), "Tensor"),
        (lambda model: model.nothing, "AttributeError"),
    ],
)
def test_an_example_that_does_not_fit_names_the_family(example: object, said: str):
    with pytest.raises(PluginError, match="family 'tinynet'") as caught:
        example_for(Family("tinynet", ("a.B",), example=example), Net())
    assert said in str(caught.value)
    assert caught.value.fix


def test_stages_may_be_a_callable():
    family = Family(
        "f", ("a.B",), stages=lambda model: tuple((f"body.{i}",) for i in range(len(model.body)))
    )
    assert stages_for(family, nn.DataParallel(Net())) == (("body.0",),)
    assert stages_for(Family(**GOOD), Net()) == GOOD["stages"]
    for wrong in (["a"], ("a",), ((),), (("a", 1),)):
        with pytest.raises(PluginError, match="its stages returned"):
            stages_for(Family("f", ("a.B",), stages=lambda model, x=wrong: x), Net())


def test_blocks_are_the_stages_once_more_in_smaller_parts():
    blocks = (("block1.0",), ("block1.1",))
    family = Family(**{**GOOD, "blocks": blocks})
    assert blocks_for(family, Net()) == blocks
    assert blocks_for(Family("f", ("a.B",), blocks=lambda model: blocks), Net()) == blocks
    assert blocks_for(Family(**GOOD), Net()) == ()
    with pytest.raises(PluginError, match="its blocks returned"):
        blocks_for(Family("f", ("a.B",), blocks=lambda model: ["a"]), Net())


def test_attribute_reads_through_containers():
    assert attribute(Net(), "body.0.in_features") == 3
    assert attribute(Net(), "body.7.in_features", "none") == "none"


def test_a_contradiction_shows_both_findings():
    error = contradicted(Family(**GOOD), "fc.2 (main)", plugin="acme")
    assert isinstance(error, ClaimContradictedError)
    assert "classifier (main), boxes (coupled)" in str(error)
    assert "fc.2 (main)" in str(error)
    assert "'tinynet'" in str(error)
    assert "'acme'" in str(error)


def test_values_cost_no_torch():
    code = (
        "import sys; from surgery.families import Family, HeadClaim;"
        "import surgery.families.registry;"
        "Family('a', ('a.B',), heads=(HeadClaim('fc'),)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_family_says_that_there_are_no_heads_or_claims_some():
    with pytest.raises(PluginError, match="claims heads, or says that there are none"):
        Family("flow", ("flow.Flow",), heads=(HeadClaim("fc"),), headless=True)


def test_a_headless_family_silences_what_the_graph_takes_for_a_candidate():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    family = Family("flow", ("torch.nn.modules.container.Sequential",), headless=True)
    assert find_heads(model, torch.zeros(2, 4), registry=Registry.of())
    heads = find_heads(model, torch.zeros(2, 4), registry=Registry.of(family))
    assert not heads
    assert "family 'flow' says that nothing in it makes classes" in heads.ending


class Counted(nn.Module):
    """Ends in a layer that makes classes, or else features, which its attribute tells apart."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body, self.last = nn.Linear(4, 8), nn.Linear(8, num_classes or 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x).relu())


def counted(**fields: object) -> Registry:
    names = (f"{Counted.__module__}.{Counted.__qualname__}",)
    return Registry.of(Family("counted", names, example=(2, 4), **fields))


def test_a_family_may_say_of_one_model_that_nothing_in_it_makes_classes():
    registry = counted(headless=lambda model: model.num_classes == 0)
    (head,) = find_heads(Counted(5), registry=registry)
    assert (head.address, head.corroborated) == ("last", True)
    bare = Counted(0)
    heads = find_heads(bare, registry=registry)
    assert not heads
    assert "family 'counted' says that nothing in it makes classes" in heads.ending
    with pytest.raises(NoHeadError, match="attach=True"):
        surgery.replace_head(bare, 7, registry=registry)
    attached = surgery.replace_head(bare, 7, registry=registry, attach=True).model
    assert attached(torch.zeros(2, 4)).shape == (2, 7)


def test_without_a_family_a_number_of_none_leaves_a_candidate_that_nothing_corroborates():
    """Whoever puts a layer of their own into a model seldom changes the number too."""
    (head,) = find_heads(Counted(0), torch.zeros(2, 4), registry=Registry.of())
    assert (head.address, head.corroborated) == ("last", False)


def test_a_family_with_claims_may_say_that_one_model_has_none():
    claims = (HeadClaim("last"),)
    registry = counted(heads=claims, headless=lambda model: model.num_classes == 0)
    assert find_heads(Counted(5), registry=registry)
    assert not find_heads(Counted(0), registry=registry)


@pytest.mark.parametrize(
    ("says", "said"), [(lambda model: 1, "int: 1"), (lambda model: model.no, "AttributeError")]
)
def test_a_word_on_heads_that_is_none_names_the_family(says, said: str):
    family = Family("tinynet", ("a.B",), headless=says)
    with pytest.raises(PluginError, match="family 'tinynet': its headless") as caught:
        is_headless(family, Net())
    assert said in str(caught.value)
    assert is_headless(Family("tinynet", ("a.B",), headless=True), Net())


def test_a_coupled_layer_follows_the_heads_of_its_family_and_is_none_itself():
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores, self.boxes = nn.Linear(4, 3), nn.Linear(4, 12)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.scores(x), self.boxes(x)

    claims = (HeadClaim("scores"), HeadClaim("boxes", "coupled", factor=4))
    name = f"{Boxes.__module__}.{Boxes.__qualname__}"
    family = Family("boxes", (name,), heads=claims)
    heads = find_heads(Boxes(), torch.zeros(2, 4), registry=Registry.of(family))
    scores, boxes = heads
    assert (scores.address, scores.num_classes, scores.factor, scores.follows) == (
        "scores",
        3,
        1,
        (),
    )
    assert (boxes.address, boxes.num_classes, boxes.factor) == ("boxes", 3, 4)
    assert (boxes.role, boxes.follows) == ("coupled", ("scores",))
