"""Which plugins there are, which model or layer each claims, and what failed and why.

A registry is a value that is passed as an argument. Plugins are loaded one by one, each on its
own, so that a broken one costs nothing but itself.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from surgery.errors import ArgumentError, ClaimConflictError, PluginError
from surgery.families.family import Claim, Family
from surgery.families.hookspecs import PROJECT
from surgery.families.kinds import HeadKind, WeightReader
from surgery.families.plugin import (
    Plugin,
    PluginFailure,
    check_names,
    distribution_of,
    failure,
    load_plugin,
)
from surgery.families.wrapping import Wrapping

if TYPE_CHECKING:
    import click
    from torch import nn

DISABLE = "SURGERY_DISABLE_PLUGINS"

_Owned = TypeVar("_Owned", Family, HeadKind)


@dataclass(frozen=True)
class Conflict:
    """One class that several families, or several head kinds, claim.

    Attributes:
        class_name: the class.
        claimants: ``(plugin, family or head kind)`` by name.
    """

    class_name: str
    claimants: tuple[tuple[str, str], ...]

    def error(self) -> ClaimConflictError:
        """The error that names every claimant."""
        shown = [f"{name!r} of plugin {plugin!r}" for plugin, name in self.claimants]
        last = self.claimants[-1][0]
        return ClaimConflictError(
            f"{len(shown)} plugins claim one class: {' and '.join(shown)}",
            where=self.class_name,
            expected="one claim",
            found=", ".join(shown),
            fix=f"export {DISABLE}={last}",
        )


class Registry:
    """The plugins in force, and what they claim.

    Args:
        plugins: loaded plugins.
        failures: what could not be loaded, kept to be shown.
        disabled: names of plugins that were left out on request.

    Example:
        >>> from torch import nn
        >>> from surgery.families.family import Family
        >>> from surgery.families.registry import Registry
        >>> linear = Family(name="linear", classes=("torch.nn.modules.linear.Linear",))
        >>> Registry.of(linear).claim(nn.Linear(2, 2)).name
        'linear'
        >>> Registry.of().claim(nn.Linear(2, 2)) is None
        True
    """

    def __init__(
        self,
        plugins: Sequence[Plugin] = (),
        failures: Sequence[PluginFailure] = (),
        disabled: Sequence[str] = (),
    ) -> None:
        self.plugins = tuple(plugins)
        self.failures = tuple(failures)
        self.disabled = tuple(disabled)
        self._families = _by_class((p.name, family) for p in plugins for family in p.families)
        self._kinds = _by_class((p.name, kind) for p in plugins for kind in p.head_kinds)
        # Weak, so that a class made in a function can be collected.
        self._found: WeakKeyDictionary[type, Claim | None] = WeakKeyDictionary()

    @classmethod
    def of(
        cls,
        *families: Family,
        head_kinds: Sequence[HeadKind] = (),
        weight_readers: Sequence[WeightReader] = (),
        wrappings: Sequence[Wrapping] = (),
    ) -> Registry:
        """A registry of these alone; ``Registry.of()`` knows nothing and works by graph.

        Raises:
            PluginError: something else than families, head kinds, weight readers and wrappings.
        """
        _check_parts("families", Family, families)
        _check_parts("head_kinds", HeadKind, head_kinds)
        _check_parts("weight_readers", WeightReader, weight_readers)
        _check_parts("wrappings", Wrapping, wrappings)
        plugins = [Plugin(family.name, families=(family,)) for family in families]
        plugins += [Plugin(kind.name, head_kinds=(kind,)) for kind in head_kinds]
        plugins += [Plugin(reader.name, weight_readers=(reader,)) for reader in weight_readers]
        plugins += [Plugin(wrapping.name, wrappings=(wrapping,)) for wrapping in wrappings]
        return cls(plugins)

    @classmethod
    def load(
        cls,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        disabled: Sequence[str] = (),
    ) -> Registry:
        """Load plugins from entry points, one by one; what fails is kept in ``failures``.

        Args:
            entry_points: the entry points to load, or None for all that are installed in the
                group ``surgery``.
            disabled: plugins to leave out: by name, by distribution, or as
                ``distribution:name``. A name that fits none is a failure.

        Returns:
            A registry that does not depend on the order of installation.
        """
        failures: list[PluginFailure] = []
        if entry_points is None:
            try:
                entry_points = importlib.metadata.entry_points(group=PROJECT)
            except Exception as error:  # any package's broken metadata can get us here
                failures.append(failure("(all)", "find", error))
                entry_points = ()
        named = _named(entry_points)
        unused = set(disabled)
        plugins, left_out = [], []
        for name, entry_point in named.items():
            distribution, _ = distribution_of(entry_point.dist)
            reasons = {name, entry_point.name, distribution, f"{distribution}:{entry_point.name}"}
            if reasons & set(disabled) - {""}:
                unused -= reasons
                left_out.append(name)
                continue
            plugin, failed = load_plugin(name, entry_point)
            plugins.append(plugin)
            failures += failed
        for name in sorted(unused):
            unknown = PluginError(
                f"there is no plugin {name!r} to disable",
                where=DISABLE,
                expected=f"some of: {', '.join(named)}" if named else "nothing: none is installed",
                found=name,
                fix=f"unset {DISABLE}, or correct the name",
            )
            failures.append(PluginFailure(name, "disable", unknown))
        return cls(plugins, failures, left_out)

    @property
    def families(self) -> tuple[Family, ...]:
        """Every family, in the order of the plugins."""
        return tuple(family for plugin in self.plugins for family in plugin.families)

    @property
    def head_kinds(self) -> tuple[HeadKind, ...]:
        """Every head kind, in the order of the plugins."""
        return tuple(kind for plugin in self.plugins for kind in plugin.head_kinds)

    @property
    def weight_readers(self) -> tuple[WeightReader, ...]:
        """Every weight reader, in the order of the plugins."""
        return tuple(reader for plugin in self.plugins for reader in plugin.weight_readers)

    @property
    def wrappings(self) -> tuple[Wrapping, ...]:
        """Every wrapping, in the order of the plugins."""
        return tuple(wrapping for plugin in self.plugins for wrapping in plugin.wrappings)

    @property
    def catalog_names(self) -> tuple[str, ...]:
        """Every name that the catalogs of the families list, with its package before it."""
        return tuple(full for family in self.families for full in family.listed.values())

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Every class that is claimed twice, whether or not a model of it was met."""
        found = [_conflict(name, claims) for name, claims in self._families.items()]
        found += [_conflict(name, claims) for name, claims in self._kinds.items()]
        return tuple(conflict for conflict in found if len(conflict.claimants) > 1)

    def claim(self, module: nn.Module) -> Family | None:
        """The family of a model, or None; cheap, and remembered for each class.

        The model's own class comes first, then its bases in the order of the MRO. Wrappers
        (``torch.compile``, DataParallel) are passed through. Nothing is imported.

        Raises:
            ClaimConflictError: two families claim the class; the error names both plugins.
        """
        found = self.find_claim(module)
        return found.family if found else None

    def find_claim(self, module: nn.Module) -> Claim | None:
        """As ``claim``, with the plugin and the class that decided.

        Raises:
            ClaimConflictError: two families claim the class; the error names both plugins.
        """
        cls = type(module)
        if cls in self._found:
            return self._found[cls]
        from surgery import tree

        inner = tree.unwrap(module)
        if inner is not module:
            return self.find_claim(inner)
        claim = None
        if (found := _nearest(self._families, cls)) is not None:
            class_name, plugin, family = found
            claim = Claim(family, plugin, class_name, exact=class_name == tree.class_name(cls))
        self._found[cls] = claim
        return claim

    def head_kind(self, layer: nn.Module) -> HeadKind | None:
        """How to rebuild this layer, or None where no plugin says so.

        Raises:
            ClaimConflictError: two head kinds claim its class; the error names both plugins.
        """
        found = _nearest(self._kinds, type(layer))
        return found[2] if found else None

    def weight_reader(self, path: Path) -> WeightReader | None:
        """The reader that accepts a file, or None. A reader that fails to look is passed over.

        Raises:
            ClaimConflictError: two readers accept the file; the error names both plugins.
        """
        accepted: list[tuple[str, WeightReader]] = []
        for plugin in self.plugins:
            for reader in plugin.weight_readers:
                if not path.name.lower().endswith(tuple(s.lower() for s in reader.suffixes)):
                    continue
                try:
                    accepts = reader.sniff(path)
                except Exception as error:  # a plugin's code: anything can come out
                    warnings.warn(
                        f"plugin {plugin.name!r} could not look at {path.name!r} "
                        f"({type(error).__name__}: {error}) and is passed over",
                        stacklevel=2,
                    )
                    continue
                if accepts:
                    accepted.append((plugin.name, reader))
        if len(accepted) > 1:
            claimants = tuple((plugin, reader.name) for plugin, reader in accepted)
            raise Conflict(str(path), claimants).error()
        return accepted[0][1] if accepted else None

    def add_commands(
        self, cli: click.Group, taken: Iterable[str] = ()
    ) -> tuple[PluginFailure, ...]:
        """Let every plugin add its commands; what fails is returned and stops nothing.

        A plugin adds all of its commands or, where it fails, none.

        Args:
            cli: what they are added to.
            taken: names of commands that are not in ``cli``, and not to be had all the same.
        """
        import click

        failures = []
        for plugin in self.plugins:
            if plugin.add_commands is None:
                continue
            own = click.Group()
            try:
                plugin.add_commands(own)
                check_names(plugin.name, own.commands, {*taken, *cli.commands})
            except (Exception, SystemExit) as error:
                failures.append(failure(plugin.name, "call", error))
                continue
            for name, command in own.commands.items():
                cli.add_command(command, name)
        return tuple(failures)

    def explain(self) -> str:
        """What is installed, what each plugin claims, and what failed and why, as text."""
        lines: list[str] = []
        for plugin in self.plugins:
            lines += _explain_plugin(plugin, self.failures)
        known = {plugin.name for plugin in self.plugins}
        lines += [f"{name}: disabled" for name in self.disabled]
        for failed in self.failures:
            if failed.plugin not in known:
                lines += _indent(f"{failed.plugin}: FAILED ({failed.stage})", str(failed.error))
        for conflict in self.conflicts:
            lines += _indent("CONFLICT", str(conflict.error()))
        return "\n".join(map(_printable, lines)) or "no plugin is installed"

    def __repr__(self) -> str:
        return f"Registry({len(self.plugins)} plugins, {len(self.failures)} failures)"


@functools.cache
def default_registry() -> Registry:
    """Every installed plugin but those named in ``SURGERY_DISABLE_PLUGINS``, loaded once.

    Only the door asks for it; everything else is handed a registry. The variable is a list of
    names with commas between, read the first time.
    """
    names = (name.strip() for name in os.environ.get(DISABLE, "").split(","))
    return Registry.load(disabled=tuple(name for name in names if name))


def check_registry(registry: object) -> None:
    """Refuse what is no registry, before anything is asked of it.

    Args:
        registry: what a caller passed; None stands for the plugins that are installed.

    Raises:
        ArgumentError: neither None nor a ``Registry``.
    """
    if registry is None or isinstance(registry, Registry):
        return
    families = isinstance(registry, Family) or (
        isinstance(registry, Sequence)
        and len(registry) > 0
        and all(isinstance(item, Family) for item in registry)
    )
    given = f"{'' if isinstance(registry, Family) else '*'}families" if families else ""
    raise ArgumentError(
        "this is no registry of plugins",
        where="registry",
        expected="a surgery.families.registry.Registry, or None for the plugins installed",
        found=repr(registry),
        fix=f"registry=Registry.of({given})" if families else "leave registry out",
    )


def in_force(registry: Registry | None) -> Registry:
    """The registry that a caller passed, or that of the installed plugins.

    Args:
        registry: what a caller passed, or None.

    Raises:
        ArgumentError: neither None nor a ``Registry``.

    Example:
        >>> from surgery.families.registry import Registry, in_force
        >>> none = Registry.of()
        >>> in_force(none) is none
        True
    """
    check_registry(registry)
    return default_registry() if registry is None else registry


def _check_parts(argument: str, kind: type, parts: object) -> None:
    """What a registry is made of: families as they are, the others in a list by keyword."""
    listed = isinstance(parts, Sequence) and not isinstance(parts, str)
    wrong = [part for part in parts if not isinstance(part, kind)] if listed else [parts]  # type: ignore[attr-defined]
    if not wrong:
        return
    found, keyword = wrong[0], f"{argument}=[...]"
    if argument == "families":
        known = {HeadKind: "head_kinds", WeightReader: "weight_readers", Wrapping: "wrappings"}
        other = known.get(type(found))
        several = isinstance(found, Sequence) and all(isinstance(part, Family) for part in found)
        keyword = f"{other}=[...]" if other else "*families" if several else "family"
    raise PluginError(
        f"this is no {kind.__name__}",
        where=f"Registry.of({argument})",
        expected=f"values of surgery.families.{kind.__name__}",
        found=repr(found),
        fix=f"Registry.of({keyword})",
    )


def _named(
    entry_points: Iterable[importlib.metadata.EntryPoint],
) -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points by plugin name; where two share one, the distribution is added to each."""
    by_name: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry_point in entry_points:
        same = by_name.setdefault(entry_point.name, [])
        if all(
            (other.value, other.dist) != (entry_point.value, entry_point.dist) for other in same
        ):
            same.append(entry_point)
    named = {}
    for name, same in by_name.items():
        for entry_point in same:
            distribution = distribution_of(entry_point.dist)[0] or entry_point.value
            named[name if len(same) == 1 else f"{distribution}:{name}"] = entry_point
    return dict(sorted(named.items()))


def _by_class(owned: Iterable[tuple[str, _Owned]]) -> dict[str, list[tuple[str, _Owned]]]:
    table: dict[str, list[tuple[str, _Owned]]] = {}
    for plugin, value in owned:
        for class_name in value.classes:
            table.setdefault(class_name, []).append((plugin, value))
    return table


def _conflict(class_name: str, claims: Sequence[tuple[str, _Owned]]) -> Conflict:
    return Conflict(class_name, tuple((plugin, value.name) for plugin, value in claims))


def _nearest(
    table: Mapping[str, Sequence[tuple[str, _Owned]]], cls: type
) -> tuple[str, str, _Owned] | None:
    """The claim on the first class of the MRO that has one, by its name or else by its package."""
    from surgery.tree import class_name

    for base in cls.__mro__:
        claims = table.get(class_name(base), ()) or _of_package(table, base)
        if len(claims) > 1:
            raise _conflict(class_name(base), claims).error()
        if claims:
            plugin, value = claims[0]
            return class_name(base), plugin, value
    return None


def _of_package(
    table: Mapping[str, Sequence[tuple[str, _Owned]]], cls: type
) -> list[tuple[str, _Owned]]:
    """The claims on the innermost package of a class, where it has their marker."""
    package = cls.__module__
    while package:
        claims = table.get(f"{package}.*", ())
        found = [c for c in claims if isinstance(c[1], Family) and hasattr(cls, c[1].marker)]
        if found:
            return found
        package = package.rpartition(".")[0]
    return []


def _explain_plugin(plugin: Plugin, failures: Sequence[PluginFailure]) -> Iterator[str]:
    source = f" ({plugin.distribution} {plugin.version})" if plugin.distribution else ""
    yield f"{plugin.name}{source}"
    for family in plugin.families:
        missing = [name for name in family.packages if not _installed(name)]
        note = f" (not installed: {', '.join(missing)})" if missing else ""
        yield f"  family {family.name}{note}: {', '.join(family.classes)}"
    for kind in plugin.head_kinds:
        yield f"  head kind {kind.name}: {', '.join(kind.classes)}"
    for reader in plugin.weight_readers:
        yield f"  weight reader {reader.name}: {', '.join(reader.suffixes)}"
    for wrapping in plugin.wrappings:
        told = wrapping.classes or (wrapping.attribute,)
        yield f"  wrapping {wrapping.name}: {', '.join(told)}"
    if plugin.add_commands is not None:
        yield "  commands"
    for failed in failures:
        if failed.plugin == plugin.name:
            yield from (f"  {x}" for x in _indent(f"FAILED ({failed.stage})", str(failed.error)))


def _indent(title: str, text: str) -> list[str]:
    return [title, *(f"  {line}" for line in text.splitlines())]


def _installed(package: str) -> bool:
    """Whether a top-level package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _printable(line: str) -> str:
    """Names from elsewhere are data: no control character of theirs reaches the terminal."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in line)
