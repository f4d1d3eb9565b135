"""Rows of classes that stay, however a head lays them out: same bits, same answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import ArgumentError
from surgery.families import Family, HeadClaim
from surgery.families.registry import Registry
from surgery.operations.names import remembered

FEATURES, ANCHORS = 6, 3


class Headed(nn.Module):
    """A head over features; ``by_class`` gives its answers with the classes first."""

    def __init__(self, head: nn.Module, classes: int) -> None:
        super().__init__()
        self.head, self.num_classes = head, classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)

    def by_class(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).movedim(1, 0)


class Linear(Headed):
    def __init__(self, classes: int) -> None:
        super().__init__(nn.Linear(FEATURES, classes), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean((2, 3)))


class Convolution(Headed):
    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv2d(FEATURES, classes, 3, padding=1), classes)


class Mask(Headed):
    """One mask a class, upsampled, as an instance segmentation draws them."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.ConvTranspose2d(FEATURES, classes, 2, 2), classes)


class Anchors(Headed):
    """Every class once for each anchor, all classes of an anchor in a row."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv2d(FEATURES, ANCHORS * classes, 1), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.head(x)
        batch, _, height, width = found.shape
        found = found.view(batch, ANCHORS, self.num_classes, height, width)
        return found.permute(0, 3, 4, 1, 2).reshape(batch, -1, self.num_classes)

    def by_class(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).movedim(2, 0)


class Shuffled(Headed):
    """Four values a class in a row, which become four pixels of its map."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv2d(FEATURES, 4 * classes, 1), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.head(x)
        batch, _, height, width = found.shape
        found = found.view(batch, self.num_classes, 2, 2, height, width)
        found = found.permute(0, 1, 4, 2, 5, 3)
        return found.reshape(batch, self.num_classes, 2 * height, 2 * width)


class Boxes(Headed):
    """Scores, and a box of four numbers for each class, which follow by a family's word."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Linear(FEATURES, classes), classes)
        self.boxes = nn.Linear(FEATURES, 4 * classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.mean((2, 3))
        return self.head(x), self.boxes(x)

    def by_class(self, x: torch.Tensor) -> torch.Tensor:
        scores, boxes = self(x)
        batch = len(scores)
        boxes = boxes.view(batch, self.num_classes, 4)
        return torch.cat([scores[..., None], boxes], 2).movedim(1, 0)


FAMILY = Family(
    "boxes",
    (f"{__name__}.Boxes",),
    heads=(HeadClaim("head"), HeadClaim("boxes", "coupled", factor=4)),
)
REGISTRY = Registry.of(FAMILY)
KINDS: dict[str, Callable[[int], Headed]] = {
    kind.__name__.lower(): kind for kind in (Linear, Convolution, Mask, Anchors, Shuffled, Boxes)
}


def fan_in(model: nn.Module) -> int:
    """The longest sum behind an answer, with its bias."""
    return 1 + max(p[0].numel() for p in model.parameters() if p.dim() > 1)


def bound(model: Headed, x: torch.Tensor) -> torch.Tensor:
    """How far two orders of summation may lie apart (Higham, section 3.1), twice for two sums."""
    sizes = copy.deepcopy(model)
    for parameter in sizes.parameters():
        parameter.abs_()
    # The mean over space, where there is one, comes before, and is the same sum both times.
    given = x.mean((2, 3), keepdim=True).expand_as(x) if isinstance(model, Linear | Boxes) else x
    length = fan_in(model) * torch.finfo(x.dtype).eps / 2
    return 2 * length / (1 - length) * sizes.by_class(given.abs())


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_kept_classes_answer_as_before_within_rounding_and_exactly_on_whole_numbers(
    name: str, data: st.DataObject
) -> None:
    old, new = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6))
    keep = data.draw(st.dictionaries(st.integers(0, new - 1), st.integers(0, old - 1)))
    whole = data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 9)))
    model = KINDS[name](old).eval()
    x = torch.randn(2, FEATURES, 4, 4)
    if whole:
        x = torch.randint(-4, 5, x.shape).float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randint(-4, 5, parameter.shape))
    with torch.no_grad():
        before, about = model.by_class(x), bound(model, x)
        surgery.replace_head(model, new, keep=keep, example=x, registry=REGISTRY)
        after = model.by_class(x)
        for to, source in keep.items():
            if whole:
                assert torch.equal(after[to], before[source])
            else:
                assert bool(((after[to] - before[source]).abs() <= about[source]).all())


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_rows_are_the_same_bits_in_any_order_and_a_merge_is_the_mean(
    name: str, data: st.DataObject
) -> None:
    old, new = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 6))
    classes = st.integers(0, old - 1)
    keep = data.draw(
        st.dictionaries(
            st.integers(0, new - 1), classes | st.lists(classes, min_size=2, max_size=3)
        )
    )
    model = KINDS[name](old)
    before = {address: rows(model, address) for address, _ in model.named_parameters()}
    x = torch.zeros(2, FEATURES, 4, 4)
    outcome = surgery.replace_head(model, new, keep=keep, example=x, registry=REGISTRY)
    for address, held in before.items():
        found = rows(model, address)
        assert len(found) == new
        for to, source in keep.items():
            wanted = held[source] if isinstance(source, int) else held[source].mean(0)
            assert torch.equal(found[to], wanted)
    outcome.undo()
    assert all(torch.equal(rows(model, address), held) for address, held in before.items())


def rows(model: Headed, address: str) -> torch.Tensor:
    """A parameter with the classes first, all that belongs to one of them behind."""
    tensor = model.get_parameter(address).detach().clone()
    axis = 1 if isinstance(model, Mask) and tensor.dim() > 1 else 0
    tensor = tensor.movedim(axis, 0)
    count = model.num_classes
    if isinstance(model, Anchors):
        return tensor.unflatten(0, (ANCHORS, count)).movedim(1, 0)
    return tensor.unflatten(0, (count, len(tensor) // count))


@pytest.mark.parametrize("name", KINDS)
def test_what_the_head_reads_is_the_same_bits(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, FEATURES, 3, padding=1), nn.ReLU(), KINDS[name](5)).eval()
    seen: list[torch.Tensor] = []
    model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        model(x)
        surgery.replace_head(model, 3, keep={0: 4}, example=x, registry=REGISTRY)
        seen[1:] = []
        model(x)
    assert torch.equal(*seen)


def test_the_number_of_entries_is_a_multiple_of_the_classes() -> None:
    for name, factor in (("anchors", ANCHORS), ("shuffled", 4), ("linear", 1)):
        example = torch.zeros(2, FEATURES, 4, 4)
        head = surgery.find_heads(KINDS[name](5), example, registry=REGISTRY)[0]
        assert (head.num_classes, head.factor, head.corroborated) == (5, factor, True)


class Split(nn.Module):
    """Features that a view splits in two, of which nobody says which are classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).view(-1, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, 20)


def test_split_features_are_a_head_where_the_model_says_which_are_classes() -> None:
    x = torch.zeros(2, FEATURES)
    model = Split()
    assert surgery.find_heads(model, x, registry=REGISTRY) == ()
    for classes, factor in ((5, 4), (4, 5)):
        model.num_classes = classes
        (head,) = surgery.find_heads(model, x, registry=REGISTRY)
        assert (head.num_classes, head.factor) == (classes, factor)


def test_names_given_once_are_known_the_next_time_and_go_with_undo() -> None:
    model, x = Linear(4), torch.zeros(2, FEATURES, 4, 4)
    first = surgery.replace_head(model, classes=["cat", "dog"], example=x, registry=REGISTRY)
    kept = model.head.weight.detach().clone()
    names = ["bird", "dog", "cat"]
    second = surgery.replace_head(model, classes=names, keep="all", example=x, registry=REGISTRY)
    assert torch.equal(model.head.weight[[2, 1]], kept)
    assert remembered(model) == tuple(names)
    surgery.replace_head(model, 5, example=x, registry=REGISTRY).undo()
    assert remembered(model) == tuple(names)
    second.undo()
    assert remembered(model) == ("cat", "dog")
    first.undo()
    assert remembered(model) is None
    with pytest.raises(ArgumentError, match="the old classes have no names"):
        surgery.replace_head(model, classes=["cat"], keep="all", example=x, registry=REGISTRY)


def test_a_refused_operation_leaves_the_names() -> None:
    model, x = Linear(4), torch.zeros(2, FEATURES, 4, 4)
    surgery.replace_head(model, classes=["cat", "dog"], example=x, registry=REGISTRY)

    def broken(weight: torch.Tensor) -> None:
        raise RuntimeError("no")

    with pytest.raises(ArgumentError):
        surgery.replace_head(model, classes=["a"], init=broken, example=x, registry=REGISTRY)
    surgery.replace_head(model, classes=["a"], dry_run=True, example=x, registry=REGISTRY)
    assert remembered(model) == ("cat", "dog")
    assert math.isfinite(model.head.weight.sum().item())
