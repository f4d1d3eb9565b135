"""``surgery heads``: the layers that make classes, and why."""

from __future__ import annotations

import json

import torch

from surgery.families.registry import Registry


def test_heads_are_shown_with_their_evidence(surgery):
    done = surgery("heads", "torchvision:googlenet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "3 heads" in done.output
    assert "family 'googlenet' says so of 'aux1'" in done.output
    found = json.loads(surgery("heads", "googlenet", "--json").stdout)
    assert found["schema"].startswith("surgery/heads/")
    assert [(h["address"], h["num_classes"], h["role"]) for h in found["heads"]] == [
        ("fc", 1000, "main"),
        ("aux2.fc2", 1000, "aux"),
        ("aux1.fc2", 1000, "aux"),
    ]


def test_a_number_of_classes_reaches_the_constructor(surgery):
    found = json.loads(surgery("heads", "squeezenet1_0", "--num-classes", 4, "--json").stdout)
    assert [(h["address"], h["num_classes"]) for h in found["heads"]] == [("classifier.1", 4)]


def test_an_example_is_a_shape(surgery, tmp_path):
    (tmp_path / "shaped.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Linear(6, 2))", "utf-8"
    )
    for option in "--example", "--input-size":
        assert surgery("heads", "shaped:make", option, "5,6").exit_code == 0
    done = surgery("heads", "shaped:make", "--example", "5,7")
    assert done.exit_code == 2
    assert "float32[5, 7]" in done.stderr
    for shape in "5,x", "", "0,6", "-1,6", "5,,6":
        done = surgery("heads", "shaped:make", "--example", shape)
        assert done.exit_code == 2
        assert "is no shape such as 1,3,224,224" in done.stderr


def test_plugins_of_the_run_are_asked(surgery):
    done = surgery("heads", "torchvision.models:resnet18", "--json", registry=Registry.of())
    [head] = json.loads(done.stdout)["heads"]
    assert head["address"] == "fc"
    assert torch.is_grad_enabled()
