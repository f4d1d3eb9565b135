"""Experts computed by one product with a batch, and experts in a list: one graph, both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry
from surgery.graph.stacked import stacked
from tests.operations.aligned import contents, shaken

NOTHING = Registry.of()
COUNT, WIDTH, INNER = 3, 6, 8


def dense(scores: torch.Tensor) -> torch.Tensor:
    """Every expert has a share."""
    return scores.softmax(-1)


def best(scores: torch.Tensor) -> torch.Tensor:
    """Two experts for each word, by a mask."""
    mask = functional.one_hot(scores.topk(2, -1).indices, COUNT).sum(-2)
    return (scores * mask).softmax(-1)


class Listed(nn.Module):
    """One layer after the other."""

    def __init__(self, shares: Callable[..., torch.Tensor] = dense, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.shares = nn.Linear(WIDTH, COUNT), shares
        self.up = nn.ModuleList(nn.Linear(WIDTH, INNER, bias=bias) for _ in range(COUNT))
        self.down = nn.ModuleList(nn.Linear(INNER, WIDTH, bias=bias) for _ in range(COUNT))

    def made(self, x: torch.Tensor) -> list[torch.Tensor]:
        pairs = zip(self.up, self.down, strict=True)
        return [down(torch.relu(up(x))) for up, down in pairs]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.gate(x))
        return sum(shares[..., n : n + 1] * each for n, each in enumerate(self.made(x)))


class Laid(Listed):
    """The same, what they make laid side by side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.gate(x))
        return (torch.stack(self.made(x), dim=1) * shares.unsqueeze(-1)).sum(1)


class Stacked(nn.Module):
    """All weights of a step in one tensor."""

    def __init__(self, shares: Callable[..., torch.Tensor] = dense, bias: bool = False) -> None:
        super().__init__()
        self.router, self.shares = nn.Linear(WIDTH, COUNT), shares
        self.up = nn.Parameter(torch.empty(COUNT, WIDTH, INNER))
        self.down = nn.Parameter(torch.empty(COUNT, INNER, WIDTH))
        if bias:
            self.first = nn.Parameter(torch.empty(COUNT, 1, INNER))
            self.second = nn.Parameter(torch.empty(COUNT, 1, WIDTH))


class ByBmm(Stacked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.router(x))
        made = torch.bmm(x.unsqueeze(0).expand(COUNT, -1, -1), self.up)
        made = torch.bmm(torch.relu(made), self.down)
        return (made * shares.t().unsqueeze(-1)).sum(0)


class ByMatmul(Stacked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.router(x))
        made = torch.relu(x @ self.up) @ self.down
        return (made.transpose(0, 1) * shares.unsqueeze(-1)).sum(dim=1)


class ByEinsum(Stacked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.router(x))
        made = torch.relu(torch.einsum("nd,edh->enh", x, self.up))
        return torch.einsum("end,ne->nd", torch.einsum("enh,ehd->end", made, self.down), shares)


class ByWord(Stacked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.router(x))
        made = torch.relu(torch.einsum("nd,edh->neh", x, self.up))
        return torch.einsum("neh,ehd,ne->nd", made, self.down, shares)


class ByGroup(Stacked):
    """Each expert has the words of every group."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.router(x))
        groups = x.unsqueeze(0).unsqueeze(0).expand(1, COUNT, -1, -1)
        made = torch.relu(torch.einsum("becd,edh->bech", groups, self.up))
        made = torch.einsum("bech,ehd->becd", made, self.down)
        return (made * shares.t().unsqueeze(-1)).sum(1).squeeze(0)


class Biased(Stacked):
    """One bias in the product, one behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.shares(self.router(x))
        made = torch.baddbmm(self.first, x.expand(COUNT, -1, -1), self.up)
        made = torch.bmm(torch.relu(made), self.down) + self.second
        return (made * shares.t().unsqueeze(-1)).sum(0)


class GatedListed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, sizes in {"up": (WIDTH, INNER), "gate": (WIDTH, INNER)}.items():
            setattr(self, name, nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in range(COUNT)))
        self.down = nn.ModuleList(nn.Linear(INNER, WIDTH, bias=False) for _ in range(COUNT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = zip(self.gate, self.up, self.down, strict=True)
        return sum(down(functional.silu(gate(x)) * up(x)) for gate, up, down in layers)


class GatedStacked(nn.Module):
    """Gate and up in one tensor for all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.empty(COUNT, WIDTH, 2 * INNER))
        self.down = nn.Parameter(torch.empty(COUNT, INNER, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ self.both).chunk(2, dim=-1)
        return ((functional.silu(gate) * up) @ self.down).sum(0)


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "bmm": (Listed, ByBmm),
    "matmul": (Listed, ByMatmul),
    "einsum": (Listed, ByEinsum),
    "results laid side by side": (Laid, ByBmm),
    "a mask": (lambda: Listed(best), lambda: ByBmm(best)),
    "a mask, by einsum": (lambda: Laid(best), lambda: ByEinsum(best)),
    "biases": (lambda: Listed(dense, True), lambda: Biased(dense, True)),
    "gate and up": (GatedListed, GatedStacked),
    "two products": (ByBmm, ByEinsum),
    "by word": (Listed, ByWord),
    "samples": (Listed, ByGroup),
}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_stacked_and_listed_experts_take_each_others_weights(name: str, back: bool):
    donor, recipient = (shaken(make()) for make in PAIRS[name][:: -1 if back else 1])
    x = torch.randn(5, WIDTH)
    before = contents(donor), contents(recipient)
    outcome = surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert any(note.startswith("proven") for note in outcome.plan.notes)
    x = torch.randn(7, WIDTH)
    with torch.no_grad():
        assert torch.allclose(donor.eval()(x), recipient.eval()(x), rtol=1e-4, atol=1e-5)
    assert contents(donor) == before[0]
    outcome.undo()
    assert contents(recipient) == before[1]


def test_experts_in_another_order_of_computation_are_found_or_refused():
    class Backwards(ByBmm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shares = self.shares(self.router(x)).flip(-1)
            made = torch.relu(x @ self.up) @ self.down
            return (made * shares.t().unsqueeze(-1)).sum(0)

    donor, recipient = shaken(Listed()), shaken(Backwards())
    x, before = torch.randn(5, WIDTH), contents(recipient)
    with pytest.raises(PlanError):
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert contents(recipient) == before


def test_another_activation_between_stacked_experts_is_refused():
    class Smooth(ByBmm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shares = self.shares(self.router(x))
            made = functional.silu(x @ self.up) @ self.down
            return (made * shares.t().unsqueeze(-1)).sum(0)

    donor, recipient = shaken(Listed()), shaken(Smooth())
    x, before = torch.randn(5, WIDTH), contents(recipient)
    with pytest.raises(PlanError, match="silu"):
        surgery.transplant(donor, recipient, match="graph", example=x, registry=NOTHING)
    assert contents(recipient) == before


def test_graphs_without_stacked_products_are_not_read_again():
    graphs = [surgery.record(m, torch.zeros(5, WIDTH), train=False) for m in (Listed(), Laid())]
    assert stacked(graphs[0], graphs[1]) is None
