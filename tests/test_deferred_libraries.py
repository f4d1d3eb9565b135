"""Models of libraries, constructed without filling: the same bits, and next to no memory."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
import transformers
from efficientnet_pytorch import EfficientNet
from torch import nn

from surgery.deferred import construct
from tests.test_deferred import Executed, assert_equal, facts, kolmogorov

QUICK = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "regnet_y_400mf", "resnet18", "squeezenet1_1"),
    *("shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vit_b_32"),
    *("fcn_resnet50", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"),
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "raft_small", "r3d_18"),
    *("quantized_mobilenet_v2", "swin3d_t", "mvit_v1_b"),
)
# 300 to 650 million parameters: the slow way alone takes minutes and gigabytes.
HUGE = {"vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf"}
PRESETS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {**PRESETS, "intermediate_size": 64}


def torchvision_model(name: str) -> nn.Module:
    settings = {} if "raft" in name else {"weights": None}
    if name in torchvision.models.list_models(torchvision.models.detection) or name.startswith(
        ("fcn", "deeplab", "lraspp")
    ):
        settings["weights_backbone"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two say that their initialisation is going to change
        return torchvision.models.get_model(name, **settings)


def other_models() -> dict[str, Callable[[], nn.Module]]:
    t = transformers
    return {
        "efficientnet-pytorch": partial(EfficientNet.from_name, "efficientnet-b0"),
        "timm vit": partial(timm.create_model, "vit_tiny_patch16_224"),
        "timm resnet": partial(timm.create_model, "resnet18d"),
        "timm swin": partial(timm.create_model, "swin_tiny_patch4_window7_224"),
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(vocab_size=50, **SMALL)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**SMALL)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(
                n_embd=32, n_layer=2, n_head=2, vocab_size=9, bos_token_id=1, eos_token_id=2
            )
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=50, **SMALL)),
    }


def check(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    with Executed() as in_full:
        slow = build()
    after = torch.get_rng_state()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with Executed() as executed:
        deferred = construct(build)
    assert torch.equal(torch.get_rng_state(), before)
    assert (executed.random, deferred.notes) == ([], ())
    assert facts(deferred.model) == facts(slow)
    assert all(parameter.is_meta for parameter in deferred.model.parameters())
    assert not any(buffer.is_meta for buffer in deferred.model.buffers())
    for (name, one), other in zip(slow.named_buffers(), deferred.model.buffers(), strict=True):
        assert torch.equal(one, other), name
    weight = sum(p.numel() * p.element_size() for p in slow.parameters())
    buffers = sum(b.numel() * b.element_size() for b in slow.buffers())
    # Every parameter was written once at least; buffers are computed now, and copied.
    assert executed.bytes < in_full.bytes - weight + 0.01 * weight + 4 * buffers
    deferred.fill()
    assert_equal(slow, deferred.model)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", QUICK)
def test_a_model_of_torchvision_comes_out_bit_for_bit(name: str):
    check(partial(torchvision_model, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(torchvision.models.list_models()) - set(QUICK) - HUGE))
def test_every_model_of_torchvision_comes_out_bit_for_bit(name: str):
    check(partial(torchvision_model, name))


@pytest.mark.parametrize("name", other_models())
def test_models_of_other_libraries_come_out_bit_for_bit(name: str):
    check(other_models()[name])


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("googlenet", "fc.weight"),
        ("efficientnet_b0", "classifier.1.weight"),
        ("vit_b_32", "encoder.pos_embedding"),
        ("swin_t", "features.1.0.attn.relative_position_bias_table"),
        ("densenet121", "features.conv0.weight"),
    ],
)
def test_a_tensor_alone_has_the_distribution_of_its_constructor(name: str, address: str):
    slow = torchvision_model(name).get_parameter(address).detach()
    deferred = construct(torchvision_model, name)
    torch.manual_seed(5)
    deferred.fill([address])
    alone = deferred.model.get_parameter(address).detach()
    assert not torch.equal(slow, alone)
    assert kolmogorov(slow, alone) < 1
    # A test that cannot tell another distribution would be none.
    owner = deferred.model.get_submodule(address.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        owner.reset_parameters()
        assert kolmogorov(slow, owner.weight.detach()) > 1


MEMORY = """
import resource, torch, torchvision
from surgery.deferred import construct

build = torchvision.models.vgg16
construct(torchvision.models.squeezenet1_0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
deferred = construct(build)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weight = sum(p.numel() * 4 for p in deferred.model.parameters())
print((after - before) * 1024 / weight)
deferred.fill(["features.0.weight"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_constructing_takes_next_to_no_memory():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.03
