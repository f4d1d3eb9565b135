"""What a graph says of a forward pass."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import surgery
from surgery.errors import ExampleError, RecordError, UnsupportedModelError
from surgery.families.registry import Registry
from surgery.graph.example import Example
from surgery.graph.graph import Graph, Node, Ref
from surgery.graph.record import record_graph
from surgery.graph.skeleton import Skeleton
from surgery.recording import record
from tests.hostile import Hostile, leaves
from tests.strategies import HOSTILE, SEEDS, Classifier, classifiers

BARE = Registry.of()


def recorded(model: nn.Module, *args: Any, **options: Any) -> Graph:
    return record_graph(model, Example(args), **options)


def operations(graph: Graph) -> list[str]:
    return [node.operation.split(".")[1] for node in graph.operations]


def only(graph: Graph, name: str) -> Node:
    (node,) = [node for node in graph.operations if node.operation.split(".")[1] == name]
    return node


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_leaves_are_what_the_model_returns(hostile: Hostile, train: bool) -> None:
    model = hostile.make().train(train)
    example = Example.of(hostile.example())
    graph = record_graph(model, example)
    with torch.random.fork_rng(devices=[]):
        output = leaves(model(*example.args, **example.kwargs))
    assert [leaf.path for leaf in graph.leaves] == list(output)
    for leaf in graph.leaves:
        tensor = output[leaf.path]
        assert (leaf.spec.shape, leaf.spec.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert leaf.source is None or graph.spec(leaf.source) == leaf.spec
    assert graph.training is train


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_graph_hangs_together(hostile: Hostile) -> None:
    model = hostile.make()
    graph = record_graph(model, Example.of(hostile.example()))
    addresses = set(dict(model.named_parameters(remove_duplicate=False)))
    modules = set(dict(model.named_modules(remove_duplicate=False)))
    for place, node in enumerate(graph.nodes):
        assert node.index == place
        assert all(ref.node < place for ref in node.inputs)
        assert all(ref.output < len(graph.nodes[ref.node].outputs) for ref in node.inputs)
        assert refs_in((node.arguments, node.keywords)) == list(node.inputs)
        assert {name for one in node.parameters for name in one} <= addresses
        assert node.module in modules
        assert bool(node.operation) == (node.role == "operation")
        for ref in node.inputs:
            assert place in graph.users[ref.node]
    light = record_graph(model, Example.of(hostile.example()), operations=False)
    assert [(leaf.path, leaf.spec) for leaf in light.leaves] == [
        (leaf.path, leaf.spec) for leaf in graph.leaves
    ]


def refs_in(value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value]
    return [ref for item in value for ref in refs_in(item)] if isinstance(value, tuple) else []


@given(classifiers(), SEEDS)
def test_the_same_model_gives_an_equal_graph_twice_and_on_meta(
    drawn: Classifier, seed: int
) -> None:
    example = Example.of(drawn.example)
    torch.manual_seed(seed)
    first = record_graph(drawn.model, example)
    torch.manual_seed(seed + 1)
    second = record_graph(drawn.model, example)
    assert first == second
    assert first.fingerprint == second.fingerprint
    if first.backend == "meta":
        assert record_graph(drawn.model.to("meta"), example) == first


PROGRAM = """
import torch, torchvision
from surgery.graph.example import Example
from surgery.graph.record import record_graph
with torch.device("meta"):
    model = torchvision.models.squeezenet1_1()
torch.manual_seed(int.from_bytes(__import__("os").urandom(4)))
print(record_graph(model, Example((torch.randn(2, 3, 64, 64),))).fingerprint)
"""


def test_another_process_with_another_hash_seed_gives_the_same_graph() -> None:
    with torch.device("meta"):
        model = torchvision.models.squeezenet1_1()
    here = recorded(model, torch.randn(2, 3, 64, 64)).fingerprint
    seeds = ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    assert {process.communicate()[0].strip() for process in running} == {here}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t"])
def test_floating_point_operations_are_those_of_torch(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        x = torch.randn(2, 3, 64 if name != "vit_b_32" else 224, 64 if name != "vit_b_32" else 224)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    first, second = recorded(model, x), recorded(model, x)
    assert first.flops == second.flops == counter.get_total_flops()
    assert sum(node.flops for node in first.operations if node.parameters) <= first.flops


def test_a_convolution_keeps_its_arguments() -> None:
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=3, groups=2)
    node = only(recorded(conv, torch.randn(2, 6, 17, 17)), "convolution")
    assert node.operation == "aten.convolution.default"
    assert node.arguments[3:] == ((2, 2), (1, 1), (3, 3), False, (0, 0), 2)
    assert node.parameters == (("weight",), ("bias",))
    assert node.outputs[0].shape == (2, 8, 7, 7)
    assert node.depends_on_input
    eps = only(recorded(nn.LayerNorm(4, eps=0.25), torch.randn(2, 4)), "native_layer_norm")
    assert 0.25 in eps.arguments


def test_a_parameter_is_followed_through_operations_on_parameters_alone() -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    graph = recorded(nn.Sequential(nn.ReLU(), normed), torch.randn(2, 4))
    addresses = {address for one in only(graph, "addmm").parameters for address in one}
    prefix = "1.parametrizations.weight."
    assert addresses == {"1.bias", f"{prefix}original0", f"{prefix}original1"}


def test_modules_and_all_addresses_of_shared_things_are_named() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer), "c": nn.Linear(4, 4)})
    model["c"].weight = layer.weight
    graph = recorded(nn.Sequential(*model.values(), nn.ReLU()), torch.randn(2, 4))
    found = [
        (node.module, node.parameters)
        for node in graph.operations
        if node.operation.startswith("aten.addmm")
    ]
    weight, bias = ("0.weight", "1.0.weight", "2.weight"), ("0.bias", "1.0.bias")
    assert found == [
        ("0", (bias, weight)),
        ("0", (bias, weight)),
        ("2", (("2.bias",), weight)),
    ]
    assert only(graph, "relu").module == "3"


def test_a_module_that_fails_and_is_caught_does_not_keep_its_name_on_what_follows() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not today")

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.risky = nn.Sequential(nn.Linear(4, 4), Fails())
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                x = self.risky(x)
            except ValueError:
                x = x.relu()
            return self.fc(x)

    graph = recorded(Tries(), torch.randn(2, 4))
    assert only(graph, "relu").module == ""
    assert [node.module for node in graph.operations if "addmm" in node.operation] == [
        "risky.0",
        "fc",
    ]


Pair = namedtuple("Pair", "logits aux")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    parts: dict[str, Any]


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda x: x, "output"),
        (lambda x: (x, None, 3), "output[0]"),
        (lambda x: {"out": [x]}, "output['out'][0]"),
        (lambda x: Pair(x, None), "output.logits"),
        (lambda x: Output(x.logits if hasattr(x, "logits") else x, {}), "output.logits"),
        (lambda x: [{"a": Pair(None, (x,))}], "output[0]['a'].aux[0]"),
    ],
)
def test_any_output_structure_is_read(wrap: Callable[[Any], Any], path: str) -> None:
    class Wraps(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return wrap(super().forward(x))

    (leaf,) = recorded(Wraps(4, 3), torch.randn(2, 4)).leaves
    assert (leaf.path, leaf.spec.shape) == (path, (2, 3))
    assert leaf.source is not None


def test_a_value_dependent_forward_runs_for_real_and_says_so() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) if x.sum() > 0 else self.b(x)

    model = Branches()
    graph = recorded(model, torch.ones(2, 4))
    assert graph.backend == "real"
    assert any("values" in spot for spot in graph.blind_spots)
    assert only(graph, "addmm").module == "a"
    assert only(recorded(model, -torch.ones(2, 4)), "addmm").module == "b"
    with pytest.raises(RecordError, match="reads the value"):
        recorded(model, torch.ones(2, 4), backends=("meta",))
    with pytest.raises(RecordError, match="have none") as caught:
        recorded(model.to("meta"), torch.ones(2, 4))
    assert caught.value.where == "a.weight"
    assert "to_empty" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "lazy"),
        (lambda: torch.export.export(nn.Linear(4, 3), (torch.randn(2, 4),)), "no model"),
        (lambda: torch.export.export(nn.Linear(4, 3), (torch.randn(2, 4),)).module(), "exported"),
        (lambda: nn.Linear, "no model"),
        (lambda: "resnet18", "no model"),
    ],
)
def test_what_cannot_be_recorded_is_refused_clearly(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        record(make(), torch.randn(2, 4), registry=BARE)
    assert caught.value.fix


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize(
    "script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 4))]
)
def test_a_scripted_module_is_refused_clearly(script: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="scripted") as caught:
        recorded(nn.Sequential(script(nn.Linear(4, 3))), torch.randn(2, 4))
    assert caught.value.where == "0"


@pytest.mark.parametrize(
    ("model", "args", "words"),
    [
        (nn.Linear(4, 3), (torch.randn(2, 5),), r"\[2, 5\] X \[4, 3\]|multiplied"),
        (nn.Linear(4, 3), (torch.randn(2, 4), 1), "argument"),
        (nn.Linear(4, 3), (), "argument"),
        (nn.Conv2d(3, 4, 3), (torch.randn(2, 1, 8, 8),), "channel"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), (torch.randn(1, 4),), "train"),
    ],
)
def test_an_example_that_does_not_fit_is_told_with_what_was_given(
    model: nn.Module, args: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(ExampleError, match=words) as caught:
        record_graph(model, Example(args))
    error = caught.value
    assert "forward" in (error.where or "")
    assert all(str(list(arg.shape)) in error.found for arg in args if torch.is_tensor(arg))
    assert "example=" in (error.fix or "")


def test_an_edit_is_tried_on_the_copy_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    modes: list[bool] = []

    def edit(copy: Skeleton) -> None:
        modes.append(copy.model.training)
        copy.model[1] = nn.Linear(4, 7, device="meta")

    graph = recorded(model, torch.randn(2, 4), train=True, edit=edit)
    assert graph.leaves[0].spec.shape == (2, 7)
    assert modes == [True]
    assert model[1].out_features == 3


def test_the_door_records_with_an_inferred_example() -> None:
    graph = record(nn.Sequential(nn.Linear(4, 3)), registry=BARE)
    assert graph.leaves[0].spec.shape[-1] == 3
    assert isinstance(graph, surgery.Graph)
