"""The reports on optimizers: what following did, groups of parameters, a plan of unfreezing."""

from __future__ import annotations

from surgery.optimizers.followed import Followed
from surgery.optimizers.groups import Groups
from surgery.optimizers.unfreezing import Unfreezing
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

_MOVED = (
    Column("address", "parameter", "address"),
    Column("group", "group", "count"),
    Column("what", "", "label"),
    Column("state", "state", "label"),
    Column("kept", "entries kept", "count", "where any"),
    Column("entries", "of", "count", "where any"),
    Column("step", "at step", "count", "where any"),
    Column("reason", "because", "text", "where any"),
)
_GROUPS = (
    Column("number", "group", "count"),
    Column("stage", "stage", "text", "where any"),
    Column("parameters", "parameters", "count"),
    Column("numbers", "numbers", "count"),
    Column("lr", "learning rate"),
    Column("scale", "of the last", "text", "where any"),
    Column("weight_decay", "weight decay"),
    Column("names", "", "list", "data"),
)
_PHASES = (
    Column("name", "stage"),
    Column("epoch", "trains from epoch", "count"),
    Column("parts", "frozen before", "list"),
)


@describe.register
def _(followed: Followed) -> Report:
    return Report(
        "followed",
        f"{followed.optimizer} follows {followed.title}{' back' if followed.undone else ''}",
        (
            Fact("operation", "", followed.title, presence="data"),
            Fact("optimizer", "", followed.optimizer, presence="data"),
            Fact("undone", "", followed.undone, presence="data"),
            Fact("untouched", "untouched parameters", followed.untouched, "count"),
            Fact("averages", "averages", len(followed.averages), "count", "where any"),
        ),
        (
            Table(
                "moved",
                "Parameters",
                _MOVED,
                tuple(
                    (
                        each.address,
                        each.group,
                        each.what,
                        each.state,
                        *(each.entries or (None, None)),
                        _whole(each.step),
                        each.reason,
                    )
                    for each in followed.moved
                ),
            ),
        ),
        followed.notes,
    )


@describe.register
def _(groups: Groups) -> Report:
    rows: list[tuple[Value, ...]] = [
        (
            number,
            group.get("stage", ""),
            len(group["params"]),
            sum(each.numel() for each in group["params"]),
            group.get("lr"),
            group.get("scale"),
            group.get("weight_decay"),
            tuple(group["param_names"]),
        )
        for number, group in enumerate(groups)
    ]
    return Report(
        "groups",
        "Groups of parameters",
        (Fact("parameters", "parameters", sum(len(g["params"]) for g in groups), "count"),),
        (Table("groups", "Groups", _GROUPS, tuple(rows)),),
        groups.notes,
    )


@describe.register
def _(plan: Unfreezing) -> Report:
    rows = tuple((phase.name, phase.epoch, phase.parts) for phase in plan.phases)
    return Report("unfreezing", "Unfreezing", (), (Table("phases", "Stages", _PHASES, rows),))


def _whole(step: float | None) -> float | None:
    """A count without a point."""
    return int(step) if step is not None and step.is_integer() else step
