"""A library nobody has heard of, that puts its own around layers and models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PluginError, WrappedModelError
from surgery.families import Family, HeadClaim, Wrapping
from surgery.families.registry import Registry
from surgery.graph.skeleton import build_skeleton
from surgery.recording import resolve_example
from tests.operations.state import differences, state_of

HERE = __name__


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu())


class Adapted(nn.Module):
    """Carries a model, as adapter libraries do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inside(*args, **kwargs)


class Several(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.active = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[self.active](x)


NET = Family("net", (f"{HERE}.Net",), example=(2, 6), heads=(HeadClaim("fc"),))
CARRIER = Wrapping("carrier", classes=(f"{HERE}.Adapted",), carries="inside")
SEVERAL = Wrapping("several", classes=(f"{HERE}.Several",), copies=("layers.*",))


def refusing(module: nn.Module, inside: str, filled: bool) -> str:
    return f"{inside} is locked" if not filled else ""


LOCK = Wrapping("lock", attribute="locked", refuses=refusing, remedy="unlock('{address}')")


def test_the_family_of_a_carried_model_says_what_goes_in() -> None:
    model = Adapted(Net())
    example = resolve_example(model, registry=Registry.of(NET, wrappings=[CARRIER]))
    assert example.args[0].shape == (2, 6)
    outcome = surgery.replace_head(model, 5, registry=Registry.of(NET, wrappings=[CARRIER]))
    assert list(outcome.new) == ["inside.fc.weight", "inside.fc.bias"]
    outcome.undo()


def test_copies_that_stay_are_named() -> None:
    model = Net()
    model.fc = Several(nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3))
    model.fc.active = 1
    known = Registry.of(NET, wrappings=[SEVERAL])
    outcome = surgery.replace_head(model, 5, registry=known)
    (note,) = (note for note in outcome.plan.notes if "copies" in note)
    assert "fc.layers.0, fc.layers.2;" in note
    assert "fc.layers.1" not in note
    before = surgery.freeze(model, "fc.*")
    assert not any("copies" in note for note in before.plan.notes)


@pytest.mark.parametrize("bare", [True, False])
def test_what_a_wrapping_refuses_is_refused_before_anything_is_touched(bare: bool) -> None:
    model = Net()
    model.fc.locked = True
    known = Registry.of(*(() if bare else (NET,)), wrappings=[LOCK])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WrappedModelError, match="weight is locked") as refused:
        surgery.replace_head(model, 5, heads="fc", example=torch.zeros(2, 6), registry=known)
    assert refused.value.fix == "unlock('fc')"
    assert refused.value.where == "fc.weight"
    with pytest.raises(WrappedModelError):
        surgery.replace(
            model, {"fc": nn.Linear(4, 3)}, example=torch.zeros(2, 6), registry=root_locked(model)
        )
    filled = surgery.load_weights(model, before, registry=known)
    assert filled.checks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # Outside of it, and without the plugin, the model changes.
    surgery.replace(model, {"body": nn.Linear(6, 4)}, example=torch.zeros(2, 6), registry=known)
    surgery.replace_head(model, 5, heads="fc", example=torch.zeros(2, 6), registry=Registry.of())


def root_locked(model: nn.Module) -> Registry:
    """A lock on the model as a whole."""
    return Registry.of(
        wrappings=[Wrapping("all", (f"{HERE}.Net",), refuses=refusing, remedy="unlock()")]
    )


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("verb", ["restore", "move in", "move out", "share"])
def test_verbs_that_put_tensors_in_ask_the_registry_they_are_given(
    tmp_path: Path, verb: str, dry_run: bool
) -> None:
    model, other = Net(), Net()
    locked = {"move out": other}.get(verb, model)
    changed = surgery.replace_head(Net(), 5, registry=Registry.of(NET)).model
    surgery.save(changed, tmp_path / "net.safetensors")

    def act(registry: Registry) -> object:
        if verb == "restore":
            path = tmp_path / "net.safetensors"
            return surgery.restore(model, path, dry_run=dry_run, registry=registry)
        how: Any = verb.partition(" ")[0]
        return surgery.transplant(
            *(other, model, {"fc": "fc"}),
            how=how,
            differences="allow",
            dry_run=dry_run,
            registry=registry,
        )

    locked.fc.locked = True
    before = [state_of(each) for each in (model, other)]
    with pytest.raises(WrappedModelError, match="weight is locked"):
        act(Registry.of(NET, wrappings=[LOCK]))
    for each, was in zip((model, other), before, strict=True):
        assert not differences(was, state_of(each))
    act(Registry.of(NET))


def test_what_is_in_the_way_of_a_recording_is_taken_off_the_stand_in_alone() -> None:
    model = Net()
    calls: list[nn.Module] = []
    own = model.fc.forward

    def forward(x: Tensor) -> Tensor:
        calls.append(model.fc)
        return own(x)

    model.fc.forward = forward  # type: ignore[method-assign]
    model.fc.around = True
    take = Wrapping("around", attribute="around", bare=lambda module: vars(module).pop("forward"))
    known = Registry.of(NET, wrappings=[take])
    assert [head.address for head in surgery.find_heads(model, registry=known)] == ["fc"]
    surgery.replace_head(model, 5, registry=known).undo()
    assert calls == []
    assert model.fc.forward is forward
    model(torch.zeros(2, 6))
    assert len(calls) == 1


def lost(module: nn.Module, inside: str, filled: bool) -> str:
    return ""


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (lambda: Wrapping("", ("a.B",)), "name"),
        (lambda: Wrapping("x"), "classes"),
        (lambda: Wrapping("x", ("a.B",), attribute="b"), "classes"),
        (lambda: Wrapping("x", "a.B"), "classes"),
        (lambda: Wrapping("x", ("a.B",), copies="original"), "copies"),
        (lambda: Wrapping("x", ("a.B",), carries=None), "carries"),
        (lambda: Wrapping("x", ("a.B",), bare="forward"), "bare"),
        (lambda: Wrapping("x", ("a.B",), refuses=lost), "remedy"),
        (lambda: Wrapping("x", ("a.B",), remedy="unload()"), "remedy"),
    ],
    ids=["name", "told by nothing", "twice", "a string", "copies", "path", "bare", "no way", "way"],
)
def test_what_is_wrong_with_a_wrapping_is_said(made: Callable[[], Wrapping], field: str) -> None:
    with pytest.raises(PluginError) as refused:
        made()
    assert refused.value.where is not None
    assert refused.value.where.endswith(f".{field}")


def test_a_large_tensor_that_hangs_somewhere_is_not_copied() -> None:
    class Store:
        def __init__(self) -> None:
            self.plain = torch.zeros(400_000)
            self.parameter = nn.Parameter(torch.zeros(400_000))
            self.small = torch.arange(3.0)

    model = Net()
    model.store = Store()
    skeleton = build_skeleton(model)
    copied = skeleton.model.store
    assert copied is not model.store
    assert copied.plain.is_meta
    assert copied.parameter.is_meta
    assert copied.plain.shape == (400_000,)
    assert copied.small.tolist() == [0, 1, 2]
    assert copied.small is not model.store.small
    assert not model.store.plain.is_meta
