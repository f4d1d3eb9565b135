"""Class names remembered beside a model: for that very object, for as long as it lives."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import torch
from torch import nn

from surgery.operations.names import remember, remembered


class Equal(nn.Linear):
    """Equal to every other, and therefore not hashable."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


def test_names_belong_to_one_object():
    one, other = Equal(2, 2), Equal(2, 2)
    remember(one, ["cat", "dog"])
    assert remembered(one) == ("cat", "dog")
    assert remembered(other) is None
    assert remembered(copy.deepcopy(one)) is None
    assert remembered(pickle.loads(pickle.dumps(one))) is None
    remember(one, ("a", "a"))
    assert remembered(one) == ("a", "a")
    remember(one, None)
    remember(one, None)
    assert remembered(one) is None


def test_the_memory_keeps_no_model_alive_and_goes_with_it():
    model = nn.Linear(2, 2)
    remember(model, ["cat", "dog"])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    # The next model may live at the same place in memory.
    assert all(remembered(nn.Linear(2, 2)) is None for _ in range(8))


def test_a_compiled_model_shares_the_memory_of_what_it_wraps():
    model = nn.Linear(2, 2)
    remember(torch.compile(model), ["cat", "dog"])
    assert remembered(model) == remembered(torch.compile(model)) == ("cat", "dog")
