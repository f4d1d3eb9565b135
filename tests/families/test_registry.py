"""Plugins are loaded one by one, claim along the MRO, and fail alone."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import ArgumentError, ClaimConflictError, HookError, PluginError
from surgery.families import Family, HeadKind, WeightReader
from surgery.families.registry import DISABLE, Registry, default_registry

ROOT = Path(__file__).parents[2]
GOOD = """
@hookimpl
def surgery_families():
    return [Family("good", ("good.Net",))]
"""


class Base(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)


class Middle(Base):
    pass


class Leaf(Middle):
    pass


class Mixed(nn.ReLU, Leaf):
    def __init__(self) -> None:
        Base.__init__(self)


def family(*classes: type, name: str = "f") -> Family:
    return Family(name, tuple(f"{cls.__module__}.{cls.__qualname__}" for cls in classes))


def test_a_subclass_is_claimed_with_its_base_and_beats_it():
    base, middle = family(Base, name="base"), family(Middle, name="middle")
    for registry in (Registry.of(base, middle), Registry.of(middle, base)):
        found = [registry.claim(cls()) for cls in (Base, Middle, Leaf, Mixed)]
        assert found == [base, middle, middle, middle]
        assert registry.claim(nn.Linear(2, 2)) is None
    claims = [Registry.of(base, middle).find_claim(cls()) for cls in (Middle, Leaf)]
    assert [claim.exact for claim in claims] == [True, False]
    assert {claim.class_name for claim in claims} == {f"{__name__}.Middle"}
    assert {claim.plugin for claim in claims} == {"middle"}


def test_the_order_of_the_mro_decides_and_not_of_the_families():
    relu, base = family(nn.ReLU, name="relu"), family(Base, name="base")
    assert Registry.of(base, relu).claim(Mixed()) is relu
    assert Registry.of(relu, base).claim(Mixed()) is relu


def test_with_no_plugin_nothing_is_claimed():
    registry = Registry.of()
    assert registry.claim(Leaf()) is registry.head_kind(Leaf()) is None
    assert registry.weight_reader(Path("x.pth")) is None
    assert registry.families == registry.head_kinds == registry.failures == ()
    assert registry.explain() == "no plugin is installed"


KIND = HeadKind("kind", ("a.B",), rebuild=print)
READER = WeightReader("reader", (".a",), sniff=print, open=print)


@pytest.mark.parametrize(
    ("families", "others", "where", "fix"),
    [
        ((KIND,), {}, "families", "Registry.of(head_kinds=[...])"),
        ((READER,), {}, "families", "Registry.of(weight_readers=[...])"),
        (([family(Base), family(Leaf)],), {}, "families", "Registry.of(*families)"),
        (("resnet",), {}, "families", "Registry.of(family)"),
        ((None,), {}, "families", "Registry.of(family)"),
        ((), {"head_kinds": KIND}, "head_kinds", "Registry.of(head_kinds=[...])"),
        ((), {"head_kinds": [family(Base)]}, "head_kinds", "Registry.of(head_kinds=[...])"),
        ((), {"weight_readers": "a"}, "weight_readers", "Registry.of(weight_readers=[...])"),
    ],
)
def test_a_registry_is_made_of_what_plugins_give(families, others, where: str, fix: str):
    with pytest.raises(PluginError) as caught:
        Registry.of(*families, **others)
    assert caught.value.where == f"Registry.of({where})"
    assert caught.value.fix == fix


ASKED = {
    "align": lambda model, **asked: surgery.align(model, model, **asked),
    "build": lambda model, **asked: surgery.build("resnet18", **asked),
    "diff": lambda model, **asked: surgery.diff(model, model, **asked),
    "load_weights": lambda model, **asked: surgery.load_weights(model, {}, **asked),
    "picture": lambda model, **asked: surgery.picture(model, "1", **asked),
    "replace": lambda model, **asked: surgery.replace(model, {"1": nn.ReLU()}, **asked),
    "replace_head": lambda model, **asked: surgery.replace_head(model, 3, **asked),
    "replace_keypoints": lambda model, **asked: surgery.replace_keypoints(model, 3, **asked),
    "adapt_input": lambda model, **asked: surgery.adapt_input(model, in_channels=1, **asked),
    "restore": lambda model, **asked: surgery.restore("resnet18", "none.safetensors", **asked),
    "transplant": lambda model, **asked: surgery.transplant(Leaf(), model, **asked),
}


@pytest.mark.parametrize(
    "verb",
    [
        name
        for name in surgery.__all__
        if inspect.isfunction(getattr(surgery, name))
        and "registry" in inspect.signature(getattr(surgery, name)).parameters
    ],
)
def test_every_verb_refuses_what_is_no_registry(verb: str):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    call = ASKED.get(verb, getattr(surgery, verb))
    theirs = family(Base)
    for wrong, fix in (
        (3, "leave registry out"),
        ([], "leave registry out"),
        (theirs, "registry=Registry.of(families)"),
        ([theirs], "registry=Registry.of(*families)"),
    ):
        with pytest.raises(ArgumentError, match="no registry of plugins") as caught:
            call(model, registry=wrong)
        assert caught.value.where == "registry"
        assert caught.value.fix == fix


def test_wrappers_and_parametrizations_are_passed_through():
    base = family(Base)
    registry = Registry.of(base)
    assert registry.claim(nn.DataParallel(Leaf())) is base
    assert registry.claim(nn.DataParallel(nn.ReLU())) is None
    assert registry.claim(torch.nn.utils.parametrizations.weight_norm(Leaf())) is base


def test_a_claim_is_remembered_for_each_class():
    registry = Registry.of(family(Base))
    assert registry.find_claim(Leaf()) is registry.find_claim(Leaf())
    assert registry.find_claim(Leaf()) is not registry.find_claim(Middle())
    assert Registry.of().claim(Leaf()) is None


def test_two_claims_on_one_class_name_both_plugins(load, write):
    code = f"@hookimpl\ndef surgery_families():\n    return [Family('f', ('{__name__}.Middle',))]"
    registry = load(acme=write("acme", code), zenith=write("zenith", code), good=write("g", GOOD))
    assert registry.failures == ()
    assert registry.claim(Base()) is None
    for cls in (Middle, Leaf):
        with pytest.raises(ClaimConflictError, match=r"'acme'.*'zenith'") as caught:
            registry.claim(cls())
        assert caught.value.where == f"{__name__}.Middle"
        assert DISABLE in caught.value.fix
    assert [conflict.class_name for conflict in registry.conflicts] == [f"{__name__}.Middle"]
    assert "'acme'" in registry.explain().partition("CONFLICT")[2]
    assert load(acme="acme", zenith="zenith", disabled=("zenith",)).claim(Leaf()).name == "f"


def test_two_head_kinds_for_one_class_name_both_plugins():
    kinds = [HeadKind(name, (f"{__name__}.Base",), rebuild=print) for name in ("one", "two")]
    registry = Registry.of(head_kinds=kinds)
    with pytest.raises(ClaimConflictError, match=r"'one'.*'two'"):
        registry.head_kind(Leaf())
    assert [conflict.class_name for conflict in registry.conflicts] == [f"{__name__}.Base"]


def test_two_readers_that_accept_one_file_are_named(tmp_path: Path):
    readers = [WeightReader(n, (".w",), lambda path: True, lambda path: {}) for n in ("one", "two")]
    with pytest.raises(ClaimConflictError, match=r"'one'.*'two'"):
        Registry.of(weight_readers=readers).weight_reader(tmp_path / "x.w")


def test_a_reader_that_fails_to_look_is_passed_over(tmp_path: Path):
    def broken(path: Path) -> bool:
        raise OSError("no such disk")

    bad = WeightReader("bad", (".w",), broken, lambda path: {})
    good = WeightReader("good", (".w",), lambda path: True, lambda path: {})
    with pytest.warns(UserWarning, match=r"'bad'.*no such disk"):
        found = Registry.of(weight_readers=[bad, good]).weight_reader(tmp_path / "x.w")
    assert found is good


@pytest.mark.parametrize(
    ("code", "stage", "kind", "said"),
    [
        ("raise RuntimeError('boom')", "import", PluginError, "RuntimeError: boom"),
        ("import no_such_framework", "import", PluginError, "no_such_framework"),
        ("import sys; sys.exit(3)", "import", PluginError, "SystemExit: 3"),
        ("def f(:", "import", PluginError, "SyntaxError"),
        (
            "@hookimpl\ndef surgery_familes():\n    return []",
            "hooks",
            HookError,
            "did you mean 'surgery_families'?",
        ),
        ("def surgery_familes():\n    return []", "hooks", HookError, "'surgery_familes'"),
        ("@hookimpl\ndef families():\n    return []", "hooks", HookError, "'families'"),
        (
            "@hookimpl(specname='surgery_head_kind')\ndef kinds():\n    return []",
            "hooks",
            HookError,
            "did you mean 'surgery_head_kinds'?",
        ),
        (
            "@hookimpl\ndef surgery_families(config):\n    return []",
            "hooks",
            HookError,
            "def surgery_families(config)",
        ),
        (
            "@hookimpl\ndef surgery_commands(cli, *, verbose):\n    return []",
            "hooks",
            HookError,
            "verbose",
        ),
        (
            "def surgery_families():\n    return []",
            "hooks",
            HookError,
            "not marked",
        ),
        (
            "@hookimpl(wrapper=True)\ndef surgery_families():\n    return (yield)",
            "hooks",
            HookError,
            "wraps",
        ),
        ("x = 1", "hooks", HookError, "implements no hook"),
        ("@hookimpl\ndef surgery_families():\n    1 / 0", "call", PluginError, "ZeroDivisionError"),
        ("@hookimpl\ndef surgery_families():\n    pass", "call", PluginError, "returned nothing"),
        (
            "@hookimpl\ndef surgery_families():\n    return Family('a', ('b.C',))",
            "call",
            PluginError,
            "a list or tuple",
        ),
        (
            "@hookimpl\ndef surgery_head_kinds():\n    return [Family('a', ('b.C',))]",
            "call",
            PluginError,
            "a list or tuple of surgery.families.HeadKind",
        ),
        (
            "@hookimpl\ndef surgery_families():\n    return [Family('a', 'b.C')]",
            "call",
            PluginError,
            "Family('a').classes",
        ),
        (
            "@hookimpl\ndef surgery_weight_readers():\n    return {'x': 1}",
            "call",
            PluginError,
            "surgery.families.WeightReader",
        ),
    ],
)
def test_a_broken_plugin_fails_alone_and_says_why(load, write, code, stage, kind, said):
    registry = load(broken=write("broken", code), good=write("good", GOOD))
    (failure,) = registry.failures
    assert (failure.plugin, failure.stage) == ("broken", stage)
    assert type(failure.error) is kind
    assert said in str(failure.error)
    assert "broken" in str(failure.error) or "Family('a')" in str(failure.error)
    assert failure.error.fix
    assert [family.name for family in registry.families] == ["good"]
    assert said in " ".join(registry.explain().split()) or said in registry.explain()


def test_the_cause_of_a_failure_is_kept(load, write):
    registry = load(broken=write("broken", "\n\nraise RuntimeError('boom')"))
    error = registry.failures[0].error
    assert isinstance(error.__cause__, RuntimeError)
    assert error.where.endswith("broken.py:4")


def test_one_broken_hook_leaves_the_others_of_its_plugin(load, write):
    code = "@hookimpl\ndef surgery_head_kinds():\n    1 / 0\n" + GOOD
    registry = load(half=write("half", code))
    assert [failure.stage for failure in registry.failures] == ["call"]
    assert [family.name for family in registry.families] == ["good"]


def test_a_module_that_imports_ours_by_name_is_no_misspelt_hook(load, write):
    code = "import surgery_plugins\nsurgery_version = 3\n" + GOOD
    registry = load(good=write("good", code))
    assert registry.failures == ()


def test_an_argument_with_a_default_is_no_argument_of_the_hook(load, write):
    code = "@hookimpl\ndef surgery_families(size=3):\n    return [Family('f', ('a.B',))]"
    registry = load(good=write("good", code))
    assert [family.name for family in registry.families] == ["f"]


@pytest.mark.parametrize(
    ("value", "stage", "said"),
    [
        ("no_such_module_at_all", "import", "no_such_module_at_all"),
        ("surgery.families:nothing", "import", "nothing"),
        ("surgery.families.registry:Registry", "hooks", "plugin = Registry()"),
        ("not a reference", "import", "AttributeError"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_a_failure(load, value, stage, said):
    (failure,) = load(lost=value).failures
    assert (failure.plugin, failure.stage) == ("lost", stage)
    assert said in str(failure.error)


def test_broken_metadata_of_any_package_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    def broken(**_: object) -> object:
        raise ValueError("a malformed entry_points.txt")

    monkeypatch.setattr(importlib.metadata, "entry_points", broken)
    (failure,) = Registry.load().failures
    assert failure.stage == "find"
    assert "malformed" in str(failure.error)


class Dist:
    """Enough of a distribution for an entry point to have come from it."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name, "1.0"


def installed(name: str, value: str, distribution: str) -> EntryPoint:
    point = EntryPoint(name, value, "surgery")
    vars(point).update(dist=Dist(distribution))
    return point


def test_two_distributions_may_use_one_name(write):
    other = GOOD.replace("good", "other")
    points = [
        installed("net", write("one", GOOD), "dist-a"),
        installed("net", write("two", other), "dist-b"),
    ]
    for order in (points, points[::-1]):
        registry = Registry.load(order)
        assert [plugin.name for plugin in registry.plugins] == ["dist-a:net", "dist-b:net"]
        assert [family.name for family in registry.families] == ["good", "other"]
    for name in ("dist-a", "dist-a:net"):
        registry = Registry.load(points, disabled=(name,))
        assert [family.name for family in registry.families] == ["other"]
        assert registry.disabled == ("dist-a:net",)
    assert Registry.load(points, disabled=("net",)).families == ()


def test_an_entry_point_that_is_found_twice_counts_once(write):
    point = EntryPoint("net", write("good", GOOD), "surgery")
    assert [plugin.name for plugin in Registry.load([point, point]).plugins] == ["net"]


def test_a_disabled_plugin_is_not_imported(load, write):
    registry = load(bad=write("bad", "raise SystemExit"), disabled=("bad",))
    assert registry.failures == registry.plugins == ()
    assert registry.disabled == ("bad",)
    assert registry.explain() == "bad: disabled"


def test_disabling_what_is_not_there_is_a_failure(load, write):
    (failure,) = load(good=write("good", GOOD), disabled=("goood", "good")).failures
    assert (failure.plugin, failure.stage) == ("goood", "disable")
    assert "some of: good" in str(failure.error)


def test_the_environment_disables_plugins_of_the_default_registry(monkeypatch, write):
    points = [EntryPoint(name, write(name, GOOD), "surgery") for name in ("a", "b", "c")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)
    monkeypatch.setenv(DISABLE, " a, c,")
    default_registry.cache_clear()
    try:
        registry = default_registry()
        assert [plugin.name for plugin in registry.plugins] == ["b"]
        assert registry.disabled == ("a", "c")
        assert default_registry() is registry
    finally:
        default_registry.cache_clear()


def test_explain_shows_what_each_plugin_claims(load, write):
    code = """
    @hookimpl
    def surgery_families():
        return [Family("net", ("pkg.Net",), packages=("torch", "no_such_package_here"))]
    @hookimpl
    def surgery_head_kinds():
        return [HeadKind("cosine\\x1b[31m", ("pkg.Cosine",), rebuild=print)]
    @hookimpl
    def surgery_weight_readers():
        return [WeightReader("npz", (".npz",), sniff=print, open=print)]
    @hookimpl
    def surgery_commands(): ...
    """
    registry = load(mine=write("mine", code))
    assert registry.explain().splitlines() == [
        "mine",
        "  family net (not installed: no_such_package_here): pkg.Net",
        "  head kind cosine\\x1b[31m: pkg.Cosine",
        "  weight reader npz: .npz",
        "  commands",
    ]


def shipped() -> dict[str, str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return settings["project"]["entry-points"]["surgery"]


def test_every_plugin_that_ships_is_registered_by_an_entry_point(load):
    files = {
        path.stem
        for path in (ROOT / "plugins" / "surgery_plugins").glob("[a-z]*.py")
        if "@hookimpl" in path.read_text()
    }
    assert shipped() == {name: f"surgery_plugins.{name}" for name in files}
    registry = load(**shipped())
    assert registry.failures == registry.conflicts == ()
    assert {plugin.name for plugin in registry.plugins} == files
    assert all(plugin.families or plugin.wrappings for plugin in registry.plugins)


def test_nothing_is_imported_to_load_the_plugins_or_to_recognise_a_model():
    code = f"""
import sys
from importlib.metadata import EntryPoint
from surgery.families.registry import Registry

points = [EntryPoint(name, value, "surgery") for name, value in {shipped()!r}.items()]
registry = Registry.load(points)
registry.explain()
packages = {{name for family in registry.families for name in family.packages}}
assert packages
print(sorted(({{"torch"}} | packages) & set(sys.modules)))

from torch import nn

for family in registry.families:
    for name in family.classes:
        module, _, cls = name.rpartition(".")
        given = {{"__module__": module, "__qualname__": cls, family.marker or "x": None}}
        made = type(cls, (nn.Module,), given)
        assert registry.claim(made()) is family
        assert registry.claim(type("Mine", (made,), {{}})()) is family
print(sorted(packages & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["[]", "[]"], done.stderr
