"""What an operation costs grows with the modules of a model, and not with its parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from surgery_plugins.transformers import FAMILY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

transformers = pytest.importorskip("transformers")

KNOWN = Registry.of(FAMILY)


def llama(
    layers: int, hidden_size: int = 64, task: str = "CausalLM", **options: object
) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=1000,
        pad_token_id=0,
        **options,
    )
    with torch.device("meta"):
        return getattr(transformers, f"LlamaFor{task}")(config)


class Counter(TorchDispatchMode):
    """How many operations ran, and the most elements that one of them really made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(made, torch.Tensor) and not made.is_meta:
            self.largest = max(self.largest, made.numel())
        return made


OPERATIONS: dict[str, Callable[[nn.Module], object]] = {
    "audit": lambda model: len(surgery.audit(model).rows),
    "find_heads": partial(surgery.find_heads, registry=KNOWN),
    "replace_head": lambda model: surgery.replace_head(model, 7, registry=KNOWN).undo(),
}


def cost(name: str, model: nn.Module) -> Counter:
    with Counter() as counter:
        OPERATIONS[name](model)
    return counter


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_grow_by_the_layer_and_not_with_the_width(name: str) -> None:
    two, four, eight, wide = (
        cost(name, llama(*size)) for size in ((2, 64), (4, 64), (8, 64), (2, 16_384))
    )
    # Each layer adds the same.
    assert eight.operations - four.operations == 2 * (four.operations - two.operations)
    assert wide.operations == two.operations
    # Nothing is made that is as large as a weight.
    assert wide.largest == two.largest < 16_384


@pytest.mark.parametrize("task", ["CausalLM", "SequenceClassification"])
def test_a_model_that_no_laptop_holds_is_changed_and_put_back(task: str) -> None:
    model = llama(2, 65_536, task)
    before = surgery.audit(model)
    assert before.total > 50e9
    (head,) = surgery.find_heads(model, registry=KNOWN)
    assert head.address == ("lm_head" if task == "CausalLM" else "score")
    assert head.tied_to == ()
    outcome = surgery.replace_head(model, 7, registry=KNOWN)
    assert all(tensor.is_meta for tensor in outcome.new.values())
    assert outcome.new[f"{head.address}.weight"].shape == (7, 65_536)
    outcome.undo()
    assert surgery.audit(model) == before


def test_a_head_tied_to_the_embedding_is_recognised_and_refused_until_it_is_untied() -> None:
    model = llama(2, tie_word_embeddings=True)
    (head,) = surgery.find_heads(model, registry=KNOWN)
    assert head.tied_to == ("model.embed_tokens.weight",)
    with pytest.raises(PlanError, match="embedding") as refused:
        surgery.replace_head(model, 7, registry=KNOWN)
    remedy = str(refused.value.fix)
    assert remedy.startswith("untie it first: surgery.replace(")
    (address,) = surgery.audit(model).shared
    assert set(address.addresses) == {"lm_head.weight", "model.embed_tokens.weight"}
    with torch.device("meta"):
        new = {"lm_head": nn.Linear(64, 1000)}
    surgery.replace(model, new, registry=KNOWN)
    assert surgery.audit(model).shared == ()
    surgery.replace_head(model, 7, registry=KNOWN).undo()
