"""Textbook cases 1 and 5: GoogLeNet with a new head, and with its own weights in five classes."""

from __future__ import annotations

import pytest
import torch
from surgery_plugins import googlenet
from torch import nn
from torchvision import models

import surgery
from surgery.errors import PartialLoadWarning
from surgery.families.registry import Registry

REGISTRY = Registry.of(googlenet.FAMILY)
HEADS = {f"{head}.{name}" for head in ("fc", "aux1.fc2", "aux2.fc2") for name in ("weight", "bias")}


def network(classes: int) -> nn.Module:
    # The values do not matter here, and drawing them takes seconds.
    with torch.device("meta"):
        model = models.googlenet(num_classes=classes, aux_logits=True, init_weights=False)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for place, tensor in enumerate(model.state_dict().values()):
            tensor.fill_(place % 7 + classes / 1000)
    return model


def test_only_the_heads_of_a_checkpoint_of_a_thousand_classes_are_skipped():
    model, source = network(5), network(1000).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(PartialLoadWarning, match=r"6 tensors .* skipped for another shape") as said:
        outcome = surgery.load_weights(model, source, registry=REGISTRY)
    assert len(said) == 1
    assert {item.key for item in outcome.plan.matching.mismatched} == HEADS
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in HEADS else source[key]), key
    outcome.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_new_head_for_ten_classes():
    model = network(1000)
    assert (model.fc.in_features, model.fc.out_features) == (1024, 1000)
    surgery.replace_head(model, 10, heads="fc", registry=REGISTRY)
    assert (model.fc.in_features, model.fc.out_features) == (1024, 10)


def test_only_the_last_layers_train():
    model = network(5)
    kept = ("aux1.fc1", "aux1.fc2", "aux2.fc1", "aux2.fc2", "fc")
    surgery.freeze(model, except_=kept, registry=REGISTRY)
    trainable = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {*kept}
    images = torch.zeros(2, 3, 224, 224)
    with torch.no_grad():
        trained = model.train()(images)
        assert trained.logits.shape == (2, 5)
        assert trained.aux_logits1.shape == trained.aux_logits2.shape == (2, 5)
        assert model.eval()(images).shape == (2, 5)
