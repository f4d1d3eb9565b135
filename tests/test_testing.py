"""``check_family`` catches every sort of thing a family can get wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from surgery.errors import ClaimConflictError, ClaimContradictedError, PluginError
from surgery.families import Family, HeadClaim
from surgery.families.registry import Registry
from surgery.testing import check_family


class Net(nn.Module):
    def __init__(self, num_classes: int = 5, auxiliary: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Linear(8, 6)
        self.early = nn.Linear(6, 6)
        self.late = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.classifier = nn.Linear(6, num_classes)
        self.boxes = nn.Linear(6, 4 * num_classes)
        self.auxiliary = nn.Linear(6, num_classes) if auxiliary else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        early = self.early(self.stem(x).relu()).relu()
        late = self.late(early).relu() * self.scale
        out = (self.classifier(late), self.boxes(late))
        if self.auxiliary is not None and self.training:
            return (*out, self.auxiliary(early))
        return out


class Other(Net):
    pass


class Picky(Net):
    """Its constructor needs values, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__(int(torch.tensor(5).item()))


class Broken(Net):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("no such luck")


GOOD = Family(
    name="net",
    classes=(f"{__name__}.Net",),
    example=(2, "stem.in_features"),
    heads=(
        HeadClaim("classifier"),
        HeadClaim("auxiliary", "aux"),
        HeadClaim("boxes", "coupled", factor=4),
    ),
    stem=("stem",),
    stages=(("early",), ("late", "scale")),
    sync=("num_classes",),
    catalog={"net": f"{__name__}:Net"},
)


def plain() -> Net:
    return Net(auxiliary=False)


def test_a_good_family_passes_and_says_what_was_checked():
    assert check_family(GOOD) == ("net",)
    assert check_family(GOOD, models={"full": Net, "plain": plain}) == ("full", "plain")
    assert check_family(GOOD, models={"picky": Picky}) == ("picky",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": (f"{__name__}.Other",)}, f"{__name__}.Net"),
        ({"heads": (*GOOD.heads, HeadClaim("gone", "aux"))}, "gone"),
        ({"heads": GOOD.heads[::2]}, "auxiliary (aux, 5 classes"),
        (
            {"heads": (*GOOD.heads[:2], HeadClaim("boxes", "coupled", factor=3))},
            "boxes makes 20 numbers",
        ),
        ({"stem": ()}, "stem.weight is in none of them"),
        ({"stem": ("early",), "stages": (("stem",), ("late", "scale"))}, "runs before stem"),
        ({"stages": (("late", "scale"), ("early",))}, "stages[1] runs before stages[0]"),
        ({"stages": (("early",), ("late",))}, "scale is in none of them"),
        ({"stages": (("early",), ("late", "scale"), ("more",))}, "more"),
        ({"stages": lambda model: (("early",), ("early", "late", "scale"))}, "overlap"),
        ({"blocks": (("early",), ("gone",))}, "blocks[1]"),
        ({"blocks": lambda model: (("early",), ("early",))}, "overlap"),
        ({"stem": ("late", "stem"), "stages": (("early",), ("scale",))}, "late reads what other"),
        ({"sync": ("classes",)}, "classes is None"),
        ({"sync": ("stem.in_features",)}, "stem.in_features is 8"),
        ({"example": (2, 7)}, "(2, 7)"),
    ],
)
def test_what_the_model_contradicts_is_shown(changes: dict[str, object], said: str):
    with pytest.raises(ClaimContradictedError, match="family 'net'") as caught:
        check_family(dataclasses.replace(GOOD, **changes))
    assert said in str(caught.value)
    assert caught.value.expected
    assert caught.value.fix


def test_a_head_that_the_graph_does_not_show_is_contradicted():
    heads = (HeadClaim("late"), *GOOD.heads[1:])
    family = dataclasses.replace(GOOD, heads=heads, stages=(), stem=())
    with pytest.raises(ClaimContradictedError, match="family 'net'") as caught:
        check_family(family)
    assert "late (main)" in caught.value.expected
    assert "classifier" in caught.value.found


def test_a_head_that_no_model_has_is_contradicted():
    with pytest.raises(ClaimContradictedError, match="'auxiliary' in some model"):
        check_family(GOOD, models={"plain": plain})


@pytest.mark.parametrize(
    ("family", "models", "said"),
    [
        (dataclasses.replace(GOOD, catalog={}), None, "nothing to check"),
        (dataclasses.replace(GOOD, example=None), None, "no example"),
        (dataclasses.replace(GOOD, example=(2, "stem.depth")), None, "'stem.depth'"),
        (dataclasses.replace(GOOD, catalog={"net": f"{__name__}:Gone"}), None, "nothing to call"),
        (
            dataclasses.replace(GOOD, catalog={"net": "no_such_package:Net"}),
            None,
            "no_such_package",
        ),
        (GOOD, {"broken": Broken}, "RuntimeError: no such luck"),
    ],
)
def test_what_cannot_be_checked_is_said(family: Family, models, said: str):
    with pytest.raises(PluginError) as caught:
        check_family(family, models=models)
    assert not isinstance(caught.value, ClaimContradictedError)
    assert said in str(caught.value)
    assert caught.value.fix


def test_the_registry_has_to_find_the_family():
    other = dataclasses.replace(GOOD, name="other", classes=(f"{__name__}.Other",))
    with pytest.raises(ClaimContradictedError, match="does not claim 'net'"):
        check_family(GOOD, registry=Registry.of())
    with pytest.raises(ClaimContradictedError, match="claimed by family 'other'"):
        check_family(GOOD, registry=Registry.of(GOOD, other), models={"net": Other})
    with pytest.raises(ClaimConflictError):
        check_family(GOOD, registry=Registry.of(GOOD, dataclasses.replace(GOOD, name="twin")))


def test_checking_draws_no_random_number_and_touches_no_default_device():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_family(GOOD, models={"net": Net, "picky": Picky})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_device() == torch.device("cpu")
