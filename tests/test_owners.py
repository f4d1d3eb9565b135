"""Whose weights make an output, where several layers make them together."""

from __future__ import annotations

import torch
from torch import nn

from surgery.families.registry import Registry
from surgery.heads import find_heads

NO_PLUGINS = Registry.of()


class Words(nn.Module):
    """Scores words by the columns of two layers, of which one may be the table that reads."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 8)
        self.scores = nn.ModuleDict({"known": nn.Linear(6, 11), "more": nn.Linear(2, 11)})
        if tied:
            self.scores["known"].weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([self.scores["known"].weight, self.scores["more"].weight], dim=1)
        return self.body(self.table(ids)) @ weight.t()


def test_the_innermost_module_holds_what_is_joined_whatever_is_tied() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    for tied in (False, True):
        (head,) = find_heads(Words(tied=tied), ids, registry=NO_PLUGINS)
        assert (head.address, head.kind, head.num_classes) == ("scores", "computed", 11)
        assert head.tied_to == (("table.weight",) if tied else ())


class Apart(Words):
    """The same with its layers side by side under the root."""

    def __init__(self) -> None:
        super().__init__(tied=True)
        self.more = self.scores.pop("more")
        self.scores["more"] = nn.Linear(2, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([self.scores["known"].weight, self.more.weight], dim=1)
        return self.body(self.table(ids)) @ weight.t()


def test_what_only_the_root_holds_is_the_roots() -> None:
    (head,) = find_heads(Apart(), torch.zeros(2, 3, dtype=torch.long), registry=NO_PLUGINS)
    assert (head.address, head.kind) == ("", "computed")


class Given(nn.Module):
    """Scores words by a table that another model reads from for it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scores = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.scores.weight = self.table.weight

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        return self.scores(read)


def test_a_table_is_tied_also_where_nothing_reads_from_it() -> None:
    (head,) = find_heads(Given(), torch.zeros(2, 6), registry=NO_PLUGINS)
    assert (head.address, head.tied_to) == ("scores", ("table.weight",))
