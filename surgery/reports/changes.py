"""Which modules an operation changed: the numbers before and after, in one table."""

from __future__ import annotations

from surgery.parameters import Audit, Row
from surgery.reports.report import Column, Table, Value

_COLUMNS = (
    Column("address", "module", "address"),
    Column("change", "change", "label"),
    Column("type", "type"),
    Column("parameters", "parameters", "change"),
    Column("trainable", "trainable", "change"),
    Column("buffers", "", "change", "data"),
)


def changed_modules(before: Audit | None = None, after: Audit | None = None) -> Table:
    """The modules that are other than they were, with those that hold them.

    Args:
        before: the count of the model before; None where nobody counted.
        after: the count afterwards.

    Returns:
        A tree in the order of the model afterwards, what was removed where it used to be.
    """
    rows: list[tuple[Value, ...]] = []
    if before is not None and after is not None and before is not after:
        old = {row.address: row for row in before.rows}
        new = {row.address: row for row in after.rows}
        for address in _merged(list(old), list(new)):
            pair = old.get(address), new.get(address)
            if _numbers(pair[0]) != _numbers(pair[1]):
                rows.append(_values(address, *pair))
    levels = tuple(_depth(row[0]) for row in rows)
    return Table("changes", "Modules that change", _COLUMNS, tuple(rows), levels, "page")


def _merged(old: list[str], new: list[str]) -> list[str]:
    """All addresses: the new ones in their order, each old one behind what it used to follow."""
    kept, behind, last = set(new), dict[str | None, list[str]](), None
    for address in old:
        if address in kept:
            last = address
        else:
            behind.setdefault(last, []).append(address)
    merged = list(behind.get(None, ()))
    for address in new:
        merged += [address, *behind.get(address, ())]
    return merged


def _numbers(row: Row | None) -> tuple[object, ...]:
    if row is None:
        return ()
    return row.type, row.total, row.trainable, row.buffers, row.packed


def _values(address: str, old: Row | None, new: Row | None) -> tuple[Value, ...]:
    change = "added" if old is None else "removed" if new is None else "changed"
    types = tuple(dict.fromkeys(row.type for row in (old, new) if row is not None))
    pairs = (
        tuple(0 if row is None else getattr(row, name) for row in (old, new))
        for name in ("total", "trainable", "buffers")
    )
    return address, change, " -> ".join(types), *pairs


def _depth(address: Value) -> int:
    return str(address).count(".") + 1 if address else 0
