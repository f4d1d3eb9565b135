"""``surgery audit``: parameters by module, in the order and the depth asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

import surgery as library
from surgery.errors import ArgumentError
from surgery.reports.arrange import arrange
from surgery.reports.report import Column, Report, Table, describe


def rows(output: str) -> list[str]:
    """The first words of the table of modules."""
    lines = output.partition("By module")[2].splitlines()[3:]
    return [line.split()[0] for line in lines if line.strip() and "deeper" not in line]


def test_modules_are_counted_to_a_depth(surgery):
    done = surgery("audit", "torchvision:resnet18", "--depth", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    assert rows(done.output)[:4] == ["(the", "conv1", "bn1", "relu"]
    assert "layer1.0" not in done.output
    assert "11,689,512" in done.output
    found = json.loads(surgery("audit", "torchvision:resnet18", "--depth", 1, "--json").stdout)
    assert found["total"] == 11689512
    assert any(row["address"] == "layer1.0.conv1" for row in found["modules"])


@pytest.mark.parametrize("sort", ["size", "trainable", "bytes", "name"])
def test_modules_are_sorted_below_their_parent(sort: str, surgery):
    done = surgery("audit", "resnet18", "--sort", sort, "--json")
    found = json.loads(done.stdout)["modules"]
    plain = json.loads(surgery("audit", "resnet18", "--json").stdout)["modules"]
    assert sorted(row["address"] for row in found) == sorted(row["address"] for row in plain)
    key = {"size": "total", "trainable": "trainable", "bytes": "bytes", "name": "address"}[sort]
    below: dict[str, list[object]] = {}
    for row in found[1:]:
        parent = row["address"].rpartition(".")[0]
        assert parent == "" or parent in below or any(r["address"] == parent for r in found)
        below.setdefault(parent, []).append(row[key])
    for values in below.values():
        assert values == sorted(values, reverse=sort != "name")
    # A parent comes before what is below it, with nothing of others between.
    seen: list[str] = []
    for row in found:
        parent = row["address"].rpartition(".")[0]
        while seen and not (seen[-1] == parent or seen[-1] == ""):
            seen.pop()
        assert not row["address"] or seen[-1] == parent
        seen.append(row["address"])


def test_only_what_can_be_trained(tmp_path: Path, surgery):
    model = torchvision.models.resnet18(num_classes=3)
    library.freeze(model, except_="fc")
    path = library.save(model, tmp_path / "a.safetensors", target="torchvision:resnet18").path
    done = surgery("audit", path, "--trainable-only")
    assert (done.exit_code, done.stderr) == (0, "")
    assert rows(done.output)[:2] == ["(the", "fc"]
    assert "rows without trainable are left out" in done.output
    found = json.loads(surgery("audit", path, "--trainable-only", "--json").stdout)
    assert [row["address"] for row in found["modules"]] == ["", "fc"]
    assert found["trainable"] == 1539


def test_a_checkpoint_needs_its_model(tmp_path: Path, surgery):
    path = tmp_path / "bare.safetensors"
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    save_file(state, path)
    done = surgery("audit", path)
    assert done.exit_code == 2
    assert "add --target" in done.stderr
    assert "surgery inspect" in done.stderr
    done = surgery("audit", "resnet18", "--target", "resnet18")
    assert done.exit_code == 2
    assert "--target says nothing about a name" in done.stderr
    (tmp_path / "three.py").write_text(
        "import torchvision\ndef make(): return torchvision.models.resnet18(num_classes=3)", "utf-8"
    )
    done = surgery("audit", path, "--target", "three:make", "--json")
    assert json.loads(done.stdout)["total"] == 11178051


@pytest.mark.parametrize("words", [("--depth", "-1"), ("--depth", "x"), ("--sort", "weight")])
def test_options_out_of_range_are_refused(words: tuple[str, str], surgery):
    done = surgery("audit", "resnet18", *words)
    assert done.exit_code == 2
    assert words[0] in done.stderr
    assert "next: surgery audit --help" in done.stderr


def test_a_report_is_arranged_without_loss():
    audited = describe(library.audit(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2))))
    again = arrange(audited, "modules", by="total")
    assert sorted(again.tables[1].rows) == sorted(audited.tables[1].rows)
    assert arrange(again, "modules", by="total") == again
    assert audited.tables[1].rows != again.tables[1].rows


def test_a_flat_table_is_arranged_too():
    flat = Report("x", "X", tables=(Table("t", "", (Column("n", "number"),), ((1,), (3,), (0,))),))
    assert arrange(flat, "t", by="n").tables[0].rows == ((3,), (1,), (0,))
    kept = arrange(flat, "t", having="n")
    assert kept.tables[0].rows == ((1,), (3,))
    assert kept.notes == ("1 rows without number are left out",)
    for key, by in ("u", "n"), ("t", "m"):
        with pytest.raises(ArgumentError, match="there is no such"):
            arrange(flat, key, by=by)


def test_a_model_that_is_only_counted_is_counted_where_it_would_be(surgery):
    found = json.loads(surgery("audit", "resnet18", "--json").stdout)
    assert {row["device"] for row in found["memory"]} == {"cpu"}
    assert sum(row["bytes"] for row in found["memory"]) == found["bytes"]
    dtypes = [row["dtype"] for row in found["memory"]]
    assert sorted(dtypes) == sorted(set(dtypes))


@pytest.mark.parametrize("command", ["audit", "heads", "summary"])
def test_what_a_file_was_built_with_can_be_given_again(command: str, surgery):
    words = ("operate", "resnet18", "--option", "zero_init_residual=true", "--num-classes", 3)
    done = surgery(*words, "-o", "a.safetensors")
    assert done.exit_code == 0, done.stderr
    refused = surgery(command, "a.safetensors")
    assert refused.exit_code == 2
    given = "--option zero_init_residual=true"
    assert f"next: {given}" in refused.stderr
    done = surgery(command, "a.safetensors", *given.split())
    assert (done.exit_code, done.stderr) == (0, "")


def test_arguments_of_a_callable_are_options(surgery):
    done = surgery(
        "audit",
        "torch.nn:Linear",
        "--option",
        "in_features=3",
        "--option",
        "out_features=2",
        "--json",
    )
    assert json.loads(done.stdout)["total"] == 8
    for words in (("a=1", "--option", "a=2"), ("a={",), ("=3",), ("registry=1",)):
        refused = surgery("audit", "torch.nn:Linear", "--option", *words)
        assert refused.exit_code == 2
        assert "--option" in refused.stderr


def test_a_plain_checkpoint_of_other_classes_is_audited_whole(surgery, tmp_path: Path):
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "five.pth")
    done = surgery("audit", "five.pth", "--target", "resnet18", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["total"] == 11179077
