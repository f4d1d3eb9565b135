"""The report on a registry: which plugins there are, what each claims, what failed and why."""

from __future__ import annotations

from surgery.families.registry import Registry
from surgery.reports.report import Column, Fact, Report, Table, Value, describe


@describe.register
def _(registry: Registry) -> Report:
    return Report(
        "registry",
        "Plugins",
        facts=(Fact("disabled", "disabled", registry.disabled, "text", "where any"),),
        tables=(
            _table(
                "plugins",
                "Installed",
                ("name", "distribution", "version"),
                [(p.name, p.distribution, p.version) for p in registry.plugins],
            ),
            _table(
                "claims",
                "What they claim",
                ("plugin", "kind", "name", "claims"),
                _claims(registry),
            ),
            _table(
                "failures",
                "Failed",
                ("plugin", "stage", "error"),
                [(f.plugin, f.stage, tuple(str(f.error).splitlines())) for f in registry.failures],
            ),
            _table(
                "conflicts",
                "In conflict",
                ("class", "claimants"),
                [
                    (c.class_name, tuple(f"{name} of {plugin}" for plugin, name in c.claimants))
                    for c in registry.conflicts
                ],
            ),
        ),
        lead="" if registry.plugins or registry.failures else "No plugin is installed.",
    )


def _table(key: str, title: str, names: tuple[str, ...], rows: list[tuple[Value, ...]]) -> Table:
    return Table(key, title, tuple(Column(name, name) for name in names), tuple(rows))


def _claims(registry: Registry) -> list[tuple[Value, ...]]:
    found: list[tuple[Value, ...]] = []
    for plugin in registry.plugins:
        found += [(plugin.name, "family", item.name, item.classes) for item in plugin.families]
        found += [(plugin.name, "head kind", item.name, item.classes) for item in plugin.head_kinds]
        found += [
            (plugin.name, "weight reader", item.name, item.suffixes)
            for item in plugin.weight_readers
        ]
        found += [
            (plugin.name, "wrapping", item.name, item.classes or (item.attribute,))
            for item in plugin.wrappings
        ]
        if plugin.add_commands is not None:
            found.append((plugin.name, "commands", "", ()))
    return found
