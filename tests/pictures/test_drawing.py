"""Drawings of models: what is drawn, folded and marked, and that nothing is touched."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from surgery_plugins import resnet
from torch import Tensor, nn

import surgery
from surgery.errors import ArgumentError, WeightsError
from surgery.families.registry import Registry
from surgery.pictures.drawing import Drawing
from surgery.pictures.layout import Rectangle
from tests.operations.state import differences, state_of
from tests.strategies import HOSTILE, Hostile

SVG = "{http://www.w3.org/2000/svg}"
NONE = Registry.of()
RESNETS = Registry.of(resnet.FAMILY)


def parsed(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.svg)


def boxes(drawing: Drawing) -> list[Rectangle]:
    """The boxes of the nodes, in the coordinates of the document."""
    root = parsed(drawing)
    group = next(each for each in root.iter(f"{SVG}g") if "transform" in each.attrib)
    left, top = map(float, group.attrib["transform"][len("translate(") : -1].split())
    return [
        Rectangle(
            left + float(each.attrib["x"]),
            top + float(each.attrib["y"]),
            float(each.attrib["width"]),
            float(each.attrib["height"]),
        )
        for each in root.iter(f"{SVG}rect")
        if each.attrib.get("class") == "box"
    ]


def words(drawing: Drawing) -> list[str]:
    return ["".join(each.itertext()) for each in parsed(drawing).iter(f"{SVG}text")]


class Dag(nn.Module):
    """Layers that add up what some earlier layers make."""

    def __init__(self, sources: list[list[int]]) -> None:
        super().__init__()
        self.sources = sources
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in sources)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            made.append(layer(sum(made[place] for place in sources)))
        return made[-1] + made[0]


@st.composite
def dags(draw: st.DrawFn) -> Dag:
    count = draw(st.integers(1, 8))
    return Dag(
        [
            draw(st.lists(st.integers(0, place), min_size=1, max_size=3, unique=True))
            for place in range(count)
        ]
    )


@given(dags(), st.sampled_from([None, 0, 1, 2, "operations"]))
def test_every_box_is_inside_and_apart_from_the_others(model: Dag, depth: int | None):
    drawing = surgery.draw(model, depth=depth, example=torch.zeros(1, 4), heads=(), registry=NONE)
    _, _, width, height = map(float, parsed(drawing).attrib["viewBox"].split())
    found = boxes(drawing)
    assert len(found) == len(drawing.sketch.blocks)
    assert not any(one.meets(other) for one, other in combinations(found, 2))
    for box in found:
        assert box.x >= 0
        assert box.y >= 0
        assert box.right <= width
        assert box.bottom <= height


@given(dags())
def test_folding_keeps_every_parameter(model: Dag):
    total = sum(each.numel() for each in model.parameters())
    graph = surgery.record(model, torch.zeros(1, 4), registry=NONE)
    read = {each for node in graph.nodes for each in node.parameters if node.depends_on_input}
    for depth in (0, 1, 2):
        blocks = surgery.draw(graph, depth=depth).sketch.blocks
        assert {each for block in blocks for each in block.parameters} == read
        assert sum(block.elements for block in blocks) <= total


def test_blocks_alike_are_drawn_once_with_their_number():
    with torch.device("meta"):
        model = torchvision.models.resnet152()
    drawing = surgery.draw(model, registry=RESNETS)
    repeated = {block.address: block.repeats for block in drawing.sketch.blocks}
    assert repeated["layer3.1"] == 35
    assert repeated["layer3.0"] == 1, "it reduces the size and is not like the others"
    assert len(drawing.sketch.blocks) <= 60
    assert "\N{MULTIPLICATION SIGN} 35" in words(drawing)
    total = sum(block.elements for block in drawing.sketch.blocks)
    assert total == surgery.audit(model).total


def test_what_differs_in_a_mark_is_not_folded():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    model[3].requires_grad_(False)
    drawing = surgery.draw(model, example=torch.zeros(1, 4), heads=(), registry=NONE)
    assert [
        (block.address, block.repeats, block.marks)
        for block in drawing.sketch.blocks
        if block.kind == "module"
    ] == [("0", 3, ()), ("3", 1, ("frozen",)), ("4", 2, ())]


def test_heads_and_what_operations_did_are_marked():
    model, donor = torchvision.models.resnet18(), torchvision.models.resnet18()
    outcomes = [
        surgery.replace_head(model, 5, registry=RESNETS),
        surgery.transplant(donor, model, {"layer1": "layer1"}),
    ]
    last = surgery.freeze(model, "layer2", registry=RESNETS)
    drawing = surgery.draw(last, outcomes=outcomes, depth=1, registry=RESNETS)
    marks = {block.address: block.marks for block in drawing.sketch.blocks if block.marks}
    assert marks == {"layer1": ("transplanted",), "layer2": ("frozen",), "fc": ("head", "new")}
    assert {"transplanted", "frozen", "head", "new"} <= set(words(drawing))


def test_a_module_that_runs_twice_and_a_tied_parameter_are_marked():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.layer = nn.Linear(4, 4)
            self.out = nn.Linear(4, 9, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.layer(self.layer(self.embed(ids)).relu()))

    ids = torch.zeros(1, 3, dtype=torch.long)
    drawing = surgery.draw(Twice(), example=ids, registry=NONE)
    calls = [block.call for block in drawing.sketch.blocks if block.address == "layer"]
    assert calls == [(1, 2), (2, 2)]
    assert {"call 1 of 2", "call 2 of 2", "shared"} <= set(words(drawing))


NAME = "<script>alert(1)</script>&\"'\x1b[31m\u202e"


def test_names_are_text_and_nothing_else():
    model = nn.Sequential()
    model.add_module(NAME, nn.Linear(4, 4))
    model.__class__ = type(NAME, (nn.Sequential,), {})
    drawing = surgery.draw(model, example=torch.zeros(1, 4), registry=NONE)
    tags = {each.tag.removeprefix(SVG) for each in parsed(drawing).iter()}
    assert tags <= {"svg", "title", "desc", "style", "g", "rect", "path", "text", "tspan"}
    assert all(each.isprintable() or each == "\n" for each in drawing.svg)
    titles = ["".join(each.itertext()) for each in parsed(drawing).iter(f"{SVG}title")]
    assert any("<script>alert(1)</script>&\"'\\x1b[31m\\u202e" in title for title in titles)


def test_it_stands_alone_is_named_and_follows_light_and_dark():
    drawing = surgery.draw(nn.Linear(4, 4), example=torch.zeros(1, 4), registry=NONE)
    root = parsed(drawing)
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
    assert title.text == "Linear"
    assert "prefers-color-scheme: dark" in drawing.svg
    assert "http" not in drawing.svg.replace("http://www.w3.org/2000/svg", "")
    assert drawing._repr_svg_() == drawing.svg


CODE = """
import hashlib, torch, torchvision, surgery
from surgery.families.registry import Registry
with torch.device("meta"):
    model = torchvision.models.googlenet(init_weights=False)
drawing = surgery.draw(model, example=torch.zeros(2, 3, 64, 64), depth=2, registry=Registry.of())
print(hashlib.sha256(drawing.svg.encode()).hexdigest())
"""


def test_two_processes_draw_the_same_bytes():
    found = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            capture_output=True,
            check=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_drawing_touches_nothing():
    model = torchvision.models.resnet18().train()
    model.layer1.register_forward_hook(lambda *_: None)
    before = state_of(model)
    surgery.draw(model, registry=RESNETS)
    assert differences(before, state_of(model)) == []


def test_a_graph_alone_is_drawn_as_well():
    graph = surgery.record(nn.Linear(4, 3), torch.zeros(1, 4), registry=NONE)
    assert len(surgery.draw(graph).sketch.blocks) == 3


def test_a_drawing_is_saved_whole_and_replaces_nothing_unasked(tmp_path: Path):
    model, path = nn.Linear(4, 3), tmp_path / "graph.svg"
    drawing = surgery.draw(model, path, example=torch.zeros(1, 4), registry=NONE)
    assert path.read_text("utf-8") == drawing.svg
    path.write_text("old")
    with pytest.raises(WeightsError, match=r"there is a file already") as caught:
        drawing.save(path)
    assert caught.value.fix == "drawing.save('graph.svg', overwrite=True)"
    assert path.read_text() == "old"
    drawing.save(path, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["graph.svg"]


@pytest.mark.parametrize("depth", [-1, True, "all", 1.5])
def test_a_depth_that_is_none_is_refused(depth: object):
    with pytest.raises(ArgumentError, match="number of levels"):
        surgery.draw(nn.Linear(2, 2), depth=depth, example=torch.zeros(1, 2))


def test_a_model_that_does_nothing_is_refused():
    with pytest.raises(ArgumentError, match="nothing to draw"):
        surgery.draw(nn.Identity(), example=torch.zeros(1, 2), heads=(), registry=NONE)


def test_outcomes_of_a_dry_run_say_what_would_be_new():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    before = state_of(model)
    outcome = surgery.replace_head(
        model, 5, heads="2", example=torch.zeros(2, 4), dry_run=True, registry=NONE
    )
    drawing = surgery.draw(outcome, example=torch.zeros(2, 4), registry=NONE)
    assert next(b for b in drawing.sketch.blocks if b.address == "2").marks == ("head", "new")
    assert differences(before, state_of(model)) == []


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_a_hostile_model_is_drawn_or_computes_nothing(hostile: Hostile):
    graph = surgery.record(hostile.build(), hostile.example(), registry=NONE)
    if not any(True for _ in graph.operations):
        with pytest.raises(ArgumentError, match="nothing to draw"):
            surgery.draw(graph)
        return
    drawing = surgery.draw(graph)
    found = boxes(drawing)
    assert len(found) == len(drawing.sketch.blocks)
    assert not any(one.meets(other) for one, other in combinations(found, 2))
