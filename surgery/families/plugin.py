"""One plugin: loaded from its entry point, held to the contract, asked what it knows."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import pluggy

from surgery.errors import HookError, PluginError
from surgery.families import hookspecs
from surgery.families.family import Family
from surgery.families.hookspecs import PROJECT
from surgery.families.kinds import HeadKind, WeightReader
from surgery.families.wrapping import Wrapping

if TYPE_CHECKING:
    import click

_T = TypeVar("_T")

Stage: TypeAlias = Literal["find", "disable", "import", "hooks", "call"]


@dataclass(frozen=True)
class PluginFailure:
    """What went wrong with one plugin, kept as a value.

    Attributes:
        plugin: the plugin's name.
        stage: ``find`` (the installed entry points could not be read), ``disable`` (a plugin
            that is not there was to be disabled), ``import``, ``hooks`` (a wrong name or
            argument), or ``call`` (a hook raised or returned something wrong).
        error: what to show; its ``__cause__`` is the plugin's own exception, where there was one.
    """

    plugin: str
    stage: Stage
    error: PluginError


@dataclass(frozen=True)
class Plugin:
    """One loaded plugin and everything it registered.

    Attributes:
        name: the name of its entry point.
        distribution: the distribution that installed it, or empty.
        version: the version of that.
        families: what ``surgery_families`` returned.
        head_kinds: what ``surgery_head_kinds`` returned.
        weight_readers: what ``surgery_weight_readers`` returned.
        wrappings: what ``surgery_wrappings`` returned.
        add_commands: calls its ``surgery_commands``, or None where it has none.
    """

    name: str
    distribution: str = ""
    version: str = ""
    families: tuple[Family, ...] = ()
    head_kinds: tuple[HeadKind, ...] = ()
    weight_readers: tuple[WeightReader, ...] = ()
    wrappings: tuple[Wrapping, ...] = ()
    add_commands: Callable[[click.Group], None] | None = field(default=None, repr=False)


@functools.lru_cache(maxsize=64)
def distribution_of(found: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """The name and version of what installed a plugin; both empty where nothing did.

    Remembered: each look parses all of a distribution's metadata, its README included.

    Args:
        found: what an entry point says it is of.
    """
    return (found.name, found.version) if found is not None else ("", "")


def load_plugin(
    name: str, entry_point: importlib.metadata.EntryPoint
) -> tuple[Plugin, tuple[PluginFailure, ...]]:
    """Import a plugin and call its hooks; whatever it raises is returned as a failure.

    A plugin that breaks the contract registers nothing. Where one of its hooks fails, what its
    others returned counts.
    """
    distribution, version = distribution_of(entry_point.dist)
    empty = Plugin(name, distribution, version)
    try:
        implementation = entry_point.load()
    except (Exception, SystemExit) as error:  # a module's top level can raise anything
        return empty, (failure(name, "import", error),)
    try:
        manager = _register(name, implementation, entry_point.value)
    except (Exception, SystemExit) as error:  # also from a plugin object's own attributes
        return empty, (failure(name, "hooks", error),)
    failures: list[PluginFailure] = []

    def ask(hook: str, kind: type[_T]) -> tuple[_T, ...]:
        try:
            return _ask(name, manager, hook, kind)
        except (Exception, SystemExit) as error:
            failures.append(failure(name, "call", error))
            return ()

    plugin = Plugin(
        name,
        distribution,
        version,
        families=ask("surgery_families", Family),
        head_kinds=ask("surgery_head_kinds", HeadKind),
        weight_readers=ask("surgery_weight_readers", WeightReader),
        wrappings=ask("surgery_wrappings", Wrapping),
        add_commands=_commands(manager),
    )
    return plugin, tuple(failures)


def failure(plugin: str, stage: Stage, error: BaseException) -> PluginFailure:
    """A failure of any origin as a value, with an error that names the plugin."""
    if isinstance(error, PluginError):
        return PluginFailure(plugin, stage, error)
    doing = {"import": "could not be imported", "call": "raised in a hook"}
    wrapped = PluginError(
        f"plugin {plugin!r} {doing.get(stage, 'failed')}",
        where=_raised_at(error),
        found=f"{type(error).__name__}: {error}",
        fix=f"export SURGERY_DISABLE_PLUGINS={plugin}",
    )
    wrapped.__cause__ = error
    return PluginFailure(plugin, stage, wrapped)


def _raised_at(error: BaseException) -> str | None:
    last = None
    traceback = error.__traceback__
    while traceback is not None:
        last, traceback = traceback, traceback.tb_next
    if last is None:
        return None
    return f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}"


def _register(name: str, implementation: object, value: str) -> pluggy.PluginManager:
    """Hold a plugin to the contract, in a manager of its own: no plugin can disturb another."""
    if inspect.isclass(implementation):
        raise HookError(
            f"the entry point of plugin {name!r} leads to a class",
            where=value,
            expected="a module, or an object with the hooks as methods",
            found=f"class {implementation.__qualname__}",
            fix=f"plugin = {implementation.__name__}(), and let the entry point lead to 'plugin'",
        )
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    found = _marked(implementation, manager)
    for attribute, function, options in found:
        _check_hook(name, attribute, function, options)
    if not found:
        raise HookError(
            f"plugin {name!r} implements no hook",
            where=value,
            expected=f"at least one of: {', '.join(_known())}",
            found="no function marked with @hookimpl",
            fix="@hookimpl\ndef surgery_families(): return [FAMILY]",
        )
    manager.register(implementation, name)
    return manager


def _known() -> list[str]:
    return [key for key, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec")]


def _marked(
    implementation: object, manager: pluggy.PluginManager
) -> list[tuple[str, Callable[..., object], Mapping[str, Any] | None]]:
    """Every function that is named like a hook or marked as one, with the options of its mark."""
    found: list[tuple[str, Callable[..., object], Mapping[str, Any] | None]] = []
    for attribute in dir(implementation):
        options = manager.parse_hookimpl_opts(implementation, attribute)
        if options is not None or attribute.startswith(f"{PROJECT}_"):
            function = getattr(implementation, attribute)
            if options is not None or inspect.isroutine(function):
                found.append((attribute, function, options))
    return found


def _check_hook(
    name: str,
    attribute: str,
    function: Callable[..., object],
    options: Mapping[str, Any] | None,
) -> None:
    hook = (options or {}).get("specname") or attribute
    where = f"{getattr(function, '__module__', name)}.{attribute}"
    signature = f"def {attribute}{inspect.signature(function)}"
    known = _known()
    if hook not in known:
        close = difflib.get_close_matches(hook, known, n=1)
        raise HookError(
            f"plugin {name!r} implements a hook {hook!r}, which does not exist",
            where=where,
            expected=f"one of: {', '.join(known)}",
            found=signature,
            fix=f"did you mean {close[0]!r}?" if close else "give it another name",
        )
    if options is None:
        raise HookError(
            f"plugin {name!r} has a function {hook!r} that is not marked as a hook",
            where=where,
            expected=f"@hookimpl\n{signature}",
            found=signature,
            fix="from surgery.families import hookimpl",
        )
    if options.get("wrapper") or options.get("hookwrapper"):
        raise HookError(
            f"plugin {name!r} wraps the hook {hook!r}, and each plugin is called on its own",
            where=where,
            expected="@hookimpl",
            found="@hookimpl(wrapper=True)",
            fix="return what this plugin adds, and nothing else",
        )
    spec = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    extra = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in spec and parameter.default is parameter.empty
    ]
    if extra:
        raise HookError(
            f"plugin {name!r}: hook {hook!r} has an argument that the contract lacks: "
            + ", ".join(extra),
            where=where,
            expected=f"def {hook}({', '.join(spec)}), or fewer arguments",
            found=signature,
            fix=f"def {attribute}({', '.join(spec)}): ...",
        )


def _ask(name: str, manager: pluggy.PluginManager, hook: str, kind: type[_T]) -> tuple[_T, ...]:
    """What the plugin returned from one hook, all of it of the right kind."""
    caller = getattr(manager.hook, hook)
    answers = caller()
    where = f"{name}.{hook}"
    expected = f"a list or tuple of surgery.families.{kind.__name__}"
    # pluggy drops None from the answers.
    if len(answers) < len(caller.get_hookimpls()):
        raise PluginError(
            f"plugin {name!r}: {hook} returned nothing",
            where=where,
            expected=expected,
            found="None",
            fix="return [...], or leave the hook out",
        )
    for answer in answers:
        wrong = [] if isinstance(answer, (list, tuple)) else [answer]
        wrong += [item for item in answer if not isinstance(item, kind)] if not wrong else []
        if wrong:
            raise PluginError(
                f"plugin {name!r}: {hook} returned something else than the contract says",
                where=where,
                expected=expected,
                found=f"{type(wrong[0]).__name__}: {wrong[0]!r}",
                fix=f"return [{kind.__name__}(...)]",
            )
    return tuple(item for answer in answers for item in answer)


def _commands(manager: pluggy.PluginManager) -> Callable[[click.Group], None] | None:
    caller = manager.hook.surgery_commands
    return (lambda cli: caller(cli=cli)) if caller.get_hookimpls() else None


def check_names(plugin: str, added: Iterable[str], taken: Collection[str]) -> None:
    """Refuse commands whose names are taken.

    Args:
        plugin: whose they are.
        added: their names.
        taken: names of commands that there are already.

    Raises:
        PluginError: names the first of them.
    """
    for name in added:
        if name in taken:
            raise PluginError(
                f"plugin {plugin!r} adds a command {name!r}, and there is one already",
                where=f"{plugin}.surgery_commands",
                expected=f"another name than {', '.join(sorted(taken))}",
                found=repr(name),
                fix=f"@cli.command('{plugin}-{name}')",
            )
