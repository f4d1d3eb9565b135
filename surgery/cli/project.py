"""A plugin as a project of its own, written from templates: all of it or nothing."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import ArgumentError, PlanError

if TYPE_CHECKING:
    from surgery.families.registry import Registry

_TEMPLATES = Path(__file__).parent / "templates" / "new_plugin"
_PREFIX = "surgery-"
# What a distribution may be called: https://packaging.python.org/specifications/name-normalization
_DISTRIBUTION = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]", re.IGNORECASE)


@dataclass(frozen=True)
class Project:
    """What a plugin's project is called, throughout.

    Attributes:
        distribution: what pip calls it: ``surgery-tinynet``.
        name: the plugin and its family: ``tinynet``.
        plugin: the module of the plugin: ``surgery_tinynet``.
        network: the module of the network that comes with it: ``tinynet``.
        model: the class of that network: ``TinyNet``.
    """

    distribution: str
    name: str
    plugin: str
    network: str
    model: str

    @property
    def module_class(self) -> str:
        """The class that the family claims, qualified."""
        return f"{self.network}.{self.model}"

    @property
    def templates(self) -> dict[str, str]:
        """By file of the project, the template it is made from."""
        return {
            ".gitignore": "gitignore.j2",
            "README.md": "README.md.j2",
            "pyproject.toml": "pyproject.toml.j2",
            f"src/{self.network}.py": "network.py.j2",
            f"src/{self.plugin}.py": "plugin.py.j2",
            f"tests/test_{self.plugin}.py": "test_plugin.py.j2",
        }


def named(name: str, model: str | None, registry: Registry) -> Project:
    """Find names for a plugin's project, and check that they are free.

    Args:
        name: of the plugin, with ``surgery-`` before it or not.
        model: ``module.Class`` of the network that comes with it; from the name, if left out.
        registry: the plugins that are installed, whose names are taken.

    Raises:
        ArgumentError: a name that is none, that Python or an installed package has, or that of a
            plugin or family.

    Example:
        >>> from surgery.families.registry import Registry
        >>> project = named("tiny-net", None, Registry.of())
        >>> project.distribution, project.plugin, project.module_class
        ('surgery-tiny-net', 'surgery_tiny_net', 'tiny_net.TinyNet')
    """
    if not _DISTRIBUTION.fullmatch(name):
        raise _wrong(name, "letters, digits and '-', '_' or '.' between them")
    distribution = _PREFIX + re.sub(r"[-_.]+", "-", name).lower().removeprefix(_PREFIX)
    plain = distribution.removeprefix(_PREFIX).replace("-", "_")
    if not plain.isidentifier() or keyword.iskeyword(plain) or plain == "surgery":
        raise _wrong(name, "a name that is one in Python too, where '-' is '_'")
    _check_unclaimed(plain, registry)
    if model is None:
        model = f"{plain}.{''.join(part.title() for part in plain.split('_'))}"
    network, _, cls = model.partition(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in (network, cls)):
        raise ArgumentError(
            "this is no class of a module",
            where="--class",
            expected="a module and a class, as in tinynet.TinyNet",
            found=repr(model),
            fix=f"surgery new-plugin {name} --class tinynet.TinyNet",
        )
    project = Project(distribution, plain, f"surgery_{plain}", network, cls)
    if network == project.plugin:
        raise _taken(name, network, "the plugin's own module")
    for module in (network, project.plugin):
        _check_free(name, module)
    return project


def _check_unclaimed(name: str, registry: Registry) -> None:
    for plugin in registry.plugins:
        families = {family.name for family in plugin.families}
        if name == plugin.name or name in families:
            raise ArgumentError(
                "a plugin that is installed has this name",
                where="NAME",
                expected="a name of its own",
                found=f"{name!r}, of {plugin.distribution or plugin.name}",
                fix=f"surgery new-plugin my-{name.replace('_', '-')}",
            )


def _check_free(name: str, module: str) -> None:
    if module in sys.stdlib_module_names:
        raise _taken(name, module, "a module of Python itself")
    try:
        found = find_spec(module)
    except (ImportError, ValueError):  # a module that is loaded and has no spec
        found = None
    if found is not None or module in sys.modules:
        raise _taken(name, module, "a module that can be imported already")


def _taken(name: str, module: str, by: str) -> ArgumentError:
    return ArgumentError(
        "the project would bring a module whose name is taken",
        where=module,
        expected="a name that no module has",
        found=by,
        fix=f"surgery new-plugin {name} --class tiny_{module}.TinyNet, or another name",
    )


def _wrong(name: str, expected: str) -> ArgumentError:
    return ArgumentError(
        "a plugin cannot be called that",
        where="NAME",
        expected=expected,
        found=repr(name),
        fix="surgery new-plugin tinynet",
    )


def write_project(project: Project, directory: Path) -> Path:
    """Write a plugin's project as a new folder.

    It is written beside its place and renamed: there is all of it or nothing.

    Args:
        project: what it is called.
        directory: where its folder goes; the folder bears the name of the distribution.

    Returns:
        The folder.

    Raises:
        ArgumentError: there is something of that name, or no such directory.
        PlanError: it cannot be written. Nothing was.
    """
    folder = directory / project.distribution
    if not directory.is_dir():
        raise ArgumentError(
            "there is no such directory",
            where="--directory",
            expected="a directory to put the project's folder in",
            found=str(directory),
            fix=f"mkdir -p {directory}",
        )
    files = _rendered(project)
    _check_absent(folder)
    beside = directory / f".{project.distribution}.{os.getpid()}"
    try:
        beside.mkdir()
        for name, text in files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        # A directory takes the place of an empty one only: nothing is lost.
        beside.rename(folder)
    except OSError as error:
        raise PlanError(
            "the project cannot be written, and nothing was",
            where=str(folder),
            expected="a directory that can be written to",
            found=error.strerror or str(error),
            fix="surgery new-plugin NAME --directory another/directory",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _rendered(project: Project) -> dict[str, str]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Names are checked before they get here: what is written is code and prose, and no HTML.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    names: dict[str, object] = {
        "distribution": project.distribution,
        "name": project.name,
        "plugin": project.plugin,
        "network": project.network,
        "model": project.model,
        "module_class": project.module_class,
        "imports": sorted({project.network: project.model, project.plugin: "FAMILY"}.items()),
    }
    return {
        name: environment.get_template(template).render(names)
        for name, template in project.templates.items()
    }


def _check_absent(folder: Path) -> None:
    if os.path.lexists(folder):
        raise ArgumentError(
            "there is something of this name, and nothing is overwritten",
            where=str(folder),
            expected="nothing there",
            found="a file or directory",
            fix="surgery new-plugin NAME --directory another/directory",
        )
