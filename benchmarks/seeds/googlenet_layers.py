"""GoogLeNet for five classes: all layers frozen but the five that make classes.

In train mode three heads answer, and the main one is ``.logits``; in eval mode a tensor comes out.

Run with ``python -m benchmarks.seeds.googlenet_layers``; the table goes to
``benchmarks/results/googlenet_layers.md``.
"""

from __future__ import annotations

import torch
from torch import nn

import surgery
from benchmarks.seeds import googlenet_head
from benchmarks.seeds.page import page, publish

TRAINED = ("aux1.fc1", "aux1.fc2", "aux2.fc1", "aux2.fc2", "fc")


def prepare(model: nn.Module) -> None:
    surgery.replace_head(model, 5)
    surgery.freeze(model, except_=TRAINED)


def loss(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The main loss and, as in the paper, 0.3 of each auxiliary one."""
    main, *others = (nn.functional.cross_entropy(logits, labels) for logits in outputs)
    return main + 0.3 * sum(others)


def table() -> str:
    model = googlenet_head.network(aux_logits=True)
    prepare(model)
    audit = surgery.audit(model)
    rows = [(address, audit.at(address).trainable) for address in TRAINED]
    rows += [("all others", audit.trainable - sum(count for _, count in rows))]
    return page(
        "GoogLeNet for five classes, all frozen but its classifiers",
        ("layer", "trainable parameters"),
        rows,
        f"{audit.trainable:,} of {audit.total:,} parameters are trainable.",
        *(f"In {mode} mode: {outputs(model, mode)}." for mode in ("train", "eval")),
    )


def outputs(model: nn.Module, mode: str) -> str:
    leaves = surgery.record(model, train=mode == "train").leaves
    return ", ".join(f"`{leaf.path}` {list(leaf.spec.shape)}" for leaf in leaves)


def main() -> None:
    publish(table(), "googlenet_layers")


if __name__ == "__main__":
    main()
