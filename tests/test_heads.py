"""Heads are found in models that nobody has seen, by graph, and told from what is none."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.errors import RecordError
from surgery.families.registry import Registry
from surgery.graph.graph import Graph, Ref
from surgery.graph.walk import weight_sources
from surgery.heads import Heads, find_heads
from surgery.survey import Site, Survey, survey
from tests import test_strategies as truths
from tests.hostile import Headed
from tests.hostile_unseen_layers import UNSEEN
from tests.strategies import HOSTILE, Classifier, Hostile, classifiers, rename, renamings

NO_PLUGINS = Registry.of()
MODELS = (*HOSTILE, *UNSEEN.values())
every = pytest.mark.parametrize("truth", MODELS, ids=str)
headed = pytest.mark.parametrize("truth", [m for m in MODELS if m.heads], ids=str)
unseen = pytest.mark.parametrize("truth", UNSEEN.values(), ids=str)


def look(model: nn.Module, example: Any) -> Survey:
    return survey(model, example, registry=NO_PLUGINS)


SEEN: dict[str, Survey] = {}


def seen(truth: Hostile) -> Survey:
    """A model's survey, taken once: it is a value, and several tests ask of it."""
    if truth.name not in SEEN:
        SEEN[truth.name] = look(truth.make(), truth.example())
    return SEEN[truth.name]


def made(heads: Heads, mode: str) -> dict[str, int]:
    """Path -> class axis of every output that a head makes in this mode."""
    return {
        output.path: output.axis
        for head in heads
        for output in head.outputs
        if mode in output.modes
    }


def true_heads(truth: Hostile) -> dict[str, int]:
    return {**truth.heads, **truth.train_heads}


@every
def test_the_heads_and_their_numbers(truth: Hostile) -> None:
    heads = seen(truth).heads
    found = {head.address: head.num_classes for head in heads}
    assert len(found) == len(heads)
    assert true_heads(truth).items() <= found.items()
    assert found.items() <= {**true_heads(truth), **truth.candidates}.items()


@every
def test_corroborated_are_the_heads_whose_number_an_attribute_gives(truth: Hostile) -> None:
    heads = seen(truth).heads
    corroborated = {head.address for head in heads if head.corroborated}
    assert corroborated == (set(true_heads(truth)) if truth.corroborated else set())
    for head in heads:
        sources = [evidence.source for evidence in head.evidence]
        assert sources[0] == "graph"
        assert head.corroborated is ("attribute" in sources)


@headed
def test_the_class_axes_of_the_outputs_in_both_modes(truth: Hostile) -> None:
    heads = seen(truth).heads
    true = Heads(tuple(head for head in heads if head.address in true_heads(truth)))
    assert made(true, "eval") == truth.outputs_in(training=False)
    assert made(true, "train") == truth.outputs_in(training=True)
    for head in true:
        assert (head.output, head.class_axis) == (head.outputs[0].path, head.outputs[0].axis)


@headed
def test_heads_that_run_in_train_mode_only_are_auxiliary(truth: Hostile) -> None:
    roles = {h.address: h.role for h in seen(truth).heads}
    assert all(roles[address] == "aux" for address in truth.train_heads)
    named = {a for a in truth.heads if "aux" in a}
    assert {address for address in truth.heads if roles[address] != "main"} == named


@every
def test_what_lies_behind_the_heads_has_one_entry_for_each_class(truth: Hostile) -> None:
    """The tensors that meet the class axis are those that a twin has in another size."""
    model, found = truth.make(), seen(truth)
    met: set[str] = set()
    for head in found.heads:
        if head.address not in true_heads(truth):
            continue
        own = {name for address in head.addresses for name in _tensors(model, address)}
        for site in found.sites[head.address]:
            met |= set(_operands(found.graphs[site.mode], site)) - own
    tensors = {a for a in truth.follows if isinstance(truths.fact(model, a), torch.Tensor)}
    assert met == tensors


def _tensors(model: nn.Module, address: str) -> list[str]:
    """The addresses of all tensors inside a module, or of a parameter itself."""
    names = [*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())]
    return [name for name in names if f"{name}.".startswith(f"{address}." if address else "")]


def _operands(graph: Graph, site: Site) -> Iterator[str]:
    """The tensors that lie on the class axis: in the operation that makes it, and behind it."""
    for ref in graph.nodes[site.mixing.node].inputs:
        if ref != site.mixing.weight and not graph.nodes[ref.node].depends_on_input:
            yield from _addresses(graph, ref)
    for meeting in site.track.meetings:
        size = graph.spec(meeting.operand).shape[meeting.axis]
        assert size == site.mixing.features or (meeting.contracted and size > site.mixing.features)
        if size == site.mixing.features:
            yield from _addresses(graph, meeting.operand)


def _addresses(graph: Graph, ref: Ref) -> list[str]:
    return [source.addresses[0] for source in weight_sources(graph, ref)]


@every
def test_where_there_is_no_head_the_ending_says_what_there_is(truth: Hostile) -> None:
    heads = seen(truth).heads
    assert heads.ending
    if not heads:
        words = (
            "outside",
            "integers",
            "without any layer",
            "whose features",
            "stream",
            "no tensor",
        )
        assert any(word in heads.ending for word in words)


@settings(max_examples=60)
@given(truth=st.sampled_from(MODELS), data=st.data())
def test_names_do_not_matter(truth: Hostile, data: st.DataObject) -> None:
    """After every attribute was renamed, the same heads are found under their new names."""
    before = find_heads(truth.make(), truth.example(), registry=NO_PLUGINS)
    model = truth.make()
    moved = rename(model, data.draw(renamings(model)))
    after = find_heads(model, truth.example(), registry=NO_PLUGINS)
    assert [moved[h.address] for h in before] == [h.address for h in after]
    for one, other in zip(before, after, strict=True):
        assert tuple(moved[a] for a in one.addresses) == other.addresses
        same = ("kind", "in_features", "num_classes", "outputs")
        assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]


@settings(max_examples=60)
@given(drawn=classifiers())
def test_drawn_classifiers(drawn: Classifier) -> None:
    model, example, truth = drawn
    found = look(model, example)
    assert {head.address: head.num_classes for head in found.heads} == truth.heads
    (head,) = found.heads
    assert made(found.heads, "eval") == made(found.heads, "train") == truth.outputs
    assert head.corroborated is truth.corroborated


@settings(max_examples=30)
@given(truth=st.sampled_from(MODELS))
def test_looking_leaves_no_trace(truth: Hostile) -> None:
    model, example = truth.make(), truth.example()
    before = {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    attributes = {id(m): dict(m.__dict__) for m in model.modules()}
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    find_heads(model, example, registry=NO_PLUGINS)
    after = {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    assert before == after
    assert {id(m): m.__dict__.keys() for m in model.modules()} == {
        key: held.keys() for key, held in attributes.items()
    }
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_any_grad_mode(mode: Any) -> None:
    with mode():
        (head,) = find_heads(Headed(5), torch.zeros(2, 8), registry=NO_PLUGINS)
    assert head.address == "fc"


@unseen
@pytest.mark.parametrize("training", [False, True])
def test_the_truth_about_unseen_models(truth: Hostile, training: bool) -> None:
    """As ``test_strategies`` checks the others, without surgery having a say."""
    if any(path.startswith("output._") for path in truth.outputs):
        assert torch.is_tensor(truth.make()(truth.example()).logits)
        return
    truths.test_it_runs_and_its_class_axes_are_true(truth, training)
    if truth.has_twin and truth.heads:
        truths.test_a_twin_differs_in_the_class_axes_only(truth, training)
        truths.test_what_follows_is_complete(truth)
    truths.test_corroboration_is_an_attribute_with_that_number(truth)


def test_one_head_at_three_depths_is_one_head() -> None:
    (truth,) = [m for m in HOSTILE if m.name == "head_at_three_depths"]
    (head,) = find_heads(truth.make(), truth.example(), registry=NO_PLUGINS)
    assert [output.path for output in head.outputs] == ["output[0]", "output[1]", "output[2]"]
    assert all(output.modes == ("eval", "train") for output in head.outputs)


@pytest.mark.parametrize(
    ("name", "kind", "in_features"),
    [
        ("conv1d_over_time", "conv1d", 8),
        ("root_conv", "conv2d", 3),
        ("conv3d_clip", "conv3d", 8),
        ("transposed_conv_segmentation", "conv_transpose2d", 8),
        ("bilinear_head", "bilinear", 8),
        ("tied_language_model", "linear", 8),
        ("embedding_as_output", "embedding", 8),
        ("bare_parameter", "parameter", 8),
        ("weights_in_dict", "parameter", 8),
        ("matmul_head", "custom", 8),
        ("autograd_function_head", "custom", 8),
        ("subclass_of_linear", "linear", 8),
        ("weight_norm_old", "linear", 8),
        ("spectral_norm_new", "linear", 8),
        ("pruned_head", "linear", 8),
        ("root_linear", "linear", 8),
        ("mul_sum_head", "custom", 8),
        ("cdist_prototypes", "custom", 8),
        ("hyper_network", "computed", 8),
    ],
)
def test_kinds_and_feature_sizes(name: str, kind: str, in_features: int) -> None:
    (truth,) = [m for m in MODELS if m.name == name]
    (head,) = find_heads(truth.make(), truth.example(), registry=NO_PLUGINS)
    assert (head.kind, head.in_features) == (kind, in_features)


def test_all_addresses_of_a_shared_head_and_of_a_tied_weight() -> None:
    shared, tied, embedding = (
        next(m for m in HOSTILE if m.name == name)
        for name in ("shared_under_two_names", "tied_language_model", "embedding_as_output")
    )
    (head,) = find_heads(shared.make(), shared.example(), registry=NO_PLUGINS)
    assert head.addresses == ("a", "b")
    assert head.weights == (("a.weight", "b.weight"),)
    (head,) = find_heads(tied.make(), tied.example(), registry=NO_PLUGINS)
    assert (head.address, head.tied_to) == ("lm_head", ("embedding.weight",))
    (head,) = find_heads(embedding.make(), embedding.example(), registry=NO_PLUGINS)
    assert (head.address, head.tied_to) == ("embedding", ("embedding.weight",))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_reached_through(wrap: Any) -> None:
    (head,) = find_heads(wrap(Headed(5)), torch.zeros(2, 8), registry=NO_PLUGINS)
    assert (head.address, head.num_classes) == ("fc", 5)


def test_a_mode_that_cannot_run_is_a_blind_spot() -> None:
    class EvalOnly(Headed):
        def forward(self, x: torch.Tensor) -> Any:
            if self.training:
                raise ValueError("targets, please")
            return super().forward(x)

    found = look(EvalOnly(5), torch.zeros(2, 8))
    assert list(found.graphs) == ["eval"]
    assert [head.outputs[0].modes for head in found.heads] == [("eval",)]
    assert any("train mode was not seen" in spot for spot in found.blind_spots)


def test_what_runs_in_no_mode_is_an_error() -> None:
    class Broken(Headed):
        def forward(self, x: torch.Tensor) -> Any:
            raise ValueError("never")

    with pytest.raises(RecordError, match="never"):
        find_heads(Broken(5), torch.zeros(2, 8), registry=NO_PLUGINS)
    with pytest.raises(RecordError, match=r"reduction dim|cannot be multiplied"):
        find_heads(Headed(5), torch.zeros(2, 9), registry=NO_PLUGINS)


def test_heads_are_a_value() -> None:
    heads = surgery.find_heads(Headed(5), torch.zeros(2, 8), registry=NO_PLUGINS)
    copied = pickle.loads(pickle.dumps(heads))
    assert copied == heads == (heads[0],)
    assert copied.ending == heads.ending
    assert "fc" in repr(heads)
    assert hash(heads[0]) == hash(copied[0])


def test_without_an_example_it_is_inferred() -> None:
    (head,) = surgery.find_heads(Headed(5), registry=NO_PLUGINS)
    assert (head.address, head.num_classes) == ("fc", 5)
