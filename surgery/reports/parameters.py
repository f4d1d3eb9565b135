"""The report on an audit."""

from __future__ import annotations

from surgery.parameters import Audit, Row
from surgery.reports.areas import chart_of_modules, trainable_bar
from surgery.reports.report import Column, Fact, Report, Table, Value, describe

_MODULES = (
    Column("address", "module", "address"),
    Column("type", "type"),
    Column("total", "parameters", "count"),
    Column("trainable", "trainable", "count"),
    Column("frozen", "frozen", "count", "data"),
    Column("trainable_ratio", "", "share"),
    Column("buffers", "buffers", "count", "where any"),
    Column("packed", "packed", "count", "where any"),
    Column("elsewhere", "elsewhere", "count", "where any"),
    Column("bytes", "memory", "bytes"),
    Column("addresses", "all addresses", "text", "data"),
)


@describe.register
def _(audit: Audit) -> Report:
    return Report(
        "audit",
        "Audit",
        facts=(
            Fact("total", "parameters", audit.total, "count"),
            Fact("trainable", "trainable", audit.trainable, "count"),
            Fact("frozen", "frozen", audit.frozen, "count"),
            Fact("trainable_ratio", "trainable ratio", audit.trainable_ratio, "share"),
            Fact("buffers", "buffers", audit.buffers, "count"),
            Fact(
                "transient_buffers",
                "buffers in no state dict",
                audit.buffers - audit.persistent_buffers,
                "count",
                "where any",
            ),
            Fact("packed", "packed weights, no parameters", audit.packed, "count", "where any"),
            Fact("bytes", "memory", audit.bytes, "bytes"),
        ),
        tables=(_memory(audit), _modules(audit), *_sharing(audit)),
        notes=audit.blind_spots,
        charts=(trainable_bar(audit), chart_of_modules("model", "The model", audit)),
    )


def _memory(audit: Audit) -> Table:
    return Table(
        "memory",
        "Memory by dtype and device",
        (
            Column("dtype", "dtype"),
            Column("device", "device"),
            Column("bytes", "memory", "bytes"),
            Column("share", "", "share"),
        ),
        tuple(
            (str(dtype).removeprefix("torch."), str(device), size, size / (audit.bytes or 1))
            for (dtype, device), size in audit.bytes_by.items()
        ),
    )


def _modules(audit: Audit) -> Table:
    return Table(
        "modules",
        "By module, each with everything below it",
        _MODULES,
        tuple(_values(row) for row in audit.rows),
        tuple(row.depth for row in audit.rows),
    )


def _values(row: Row) -> tuple[Value, ...]:
    values = {column.key: getattr(row, column.key) for column in _MODULES}
    if not row.total:
        values["trainable_ratio"] = None
    return tuple(values.values())


def _sharing(audit: Audit) -> tuple[Table, ...]:
    shared = Table(
        "shared",
        "Shared, counted once",
        (
            Column("kind", "kind"),
            Column("elements", "elements", "count"),
            Column("addresses", "addresses"),
        ),
        tuple((entry.kind, entry.elements, entry.addresses) for entry in audit.shared),
    )
    storage = Table(
        "shared_storage",
        "Different tensors in one storage, each counted",
        (Column("bytes", "memory", "bytes"), Column("addresses", "addresses")),
        tuple((entry.bytes, entry.addresses) for entry in audit.shared_storage),
    )
    return shared, storage
