from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.graph.structure import replace_tensors, tensors

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: Any = None
    seen: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any


def tensor(number: int = 0) -> torch.Tensor:
    return torch.full((2,), number)


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.floats())
TENSORS = st.builds(tensor, st.integers(0, 99))


def _containers(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(items, max_size=3),
        st.tuples(items, items),
        st.dictionaries(st.text(max_size=2), items, max_size=3),
        st.dictionaries(st.text(max_size=2), items, max_size=3).map(OrderedDict),
        st.builds(Pair, items, items),
        st.builds(Output, TENSORS, items),
        st.builds(Frozen, items),
        st.builds(lambda item: SimpleNamespace(item=item), items),
    )


NESTED = st.recursive(TENSORS | PLAIN, _containers, max_leaves=8)


@given(NESTED)
def test_replacing_reaches_exactly_the_tensors_that_are_found(value: Any) -> None:
    seen: list[torch.Tensor] = []

    def new(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor + 1

    before = list(tensors(value))
    copied = replace_tensors(value, new)
    after = list(tensors(copied))
    assert {id(one) for one in seen} == {id(one) for _, one in before}
    assert [path for path, _ in after] == [path for path, _ in before]
    assert all(torch.equal(new, old + 1) for (_, new), (_, old) in zip(after, before, strict=True))
    # The value itself is never changed.
    assert [(path, id(one)) for path, one in tensors(value)] == [(p, id(t)) for p, t in before]
    assert type(copied) is type(value)


@given(NESTED)
def test_a_path_leads_to_its_tensor(value: Any) -> None:
    for path, found in tensors(value, "value"):
        assert eval(path, {"value": value}) is found


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (tensor(), ["output"]),
        ([tensor(), (tensor(),)], ["output[0]", "output[1][0]"]),
        ({"out": tensor(), 3: tensor()}, ["output['out']", "output[3]"]),
        (Pair(tensor(), None), ["output.first"]),
        (Output(tensor(), [tensor()]), ["output.logits", "output.hidden[0]"]),
        (SimpleNamespace(boxes=tensor()), ["output.boxes"]),
        (None, []),
        ("text", []),
        (torch.nn.Linear(1, 1), []),
        (Output, []),
        (tensor, []),
    ],
)
def test_paths_read_as_the_expression_a_user_would_write(value: Any, paths: list[str]) -> None:
    assert [path for path, _ in tensors(value)] == paths


def test_a_model_output_of_transformers_is_read_by_attribute() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    value = outputs.SequenceClassifierOutput(logits=tensor(), hidden_states=(tensor(), tensor()))
    paths = [path for path, _ in tensors(value)]
    assert paths == ["output.logits", "output.hidden_states[0]", "output.hidden_states[1]"]
    copied = replace_tensors(value, lambda one: one + 1)
    assert type(copied) is type(value)
    assert torch.equal(copied.logits, tensor(1))
    assert torch.equal(value.logits, tensor(0))


def test_a_value_that_contains_itself_ends() -> None:
    value: list[Any] = [tensor()]
    value.append(value)
    assert [path for path, _ in tensors(value)] == ["output[0]"]
    named = SimpleNamespace(item=tensor())
    named.self = named
    assert [path for path, _ in tensors(named)] == ["output.item"]
    assert torch.equal(replace_tensors(named, lambda one: one + 1).item, tensor(1))
    copied = replace_tensors(value, lambda one: one + 1)
    assert torch.equal(copied[0], tensor(1))
    assert torch.equal(value[0], tensor(0))
