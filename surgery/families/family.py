"""What a plugin knows of an architecture, as values: a family, its claims on heads, on a model.

Nothing here imports torch, so that a plugin costs nothing until it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from surgery.errors import ClaimContradictedError, PluginError
from surgery.families.catalog import Catalog

if TYPE_CHECKING:
    from torch import nn

    from surgery.families.resizing import Resize
    from surgery.graph.example import Example

HeadRole: TypeAlias = Literal[
    "main", "aux", "distillation", "projection", "coupled", "keypoints", "choice", "span"
]
Stages: TypeAlias = "tuple[tuple[str, ...], ...]"
Stem: TypeAlias = "tuple[str, ...]"
ExampleSpec: TypeAlias = "Callable[[nn.Module], Example | None] | tuple[int | str, ...]"
Rules: TypeAlias = "tuple[tuple[str, str], ...]"

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class HeadClaim:
    """A family's word that the layer at an address makes classes.

    A claim at an address that a model lacks says nothing about that model: auxiliary heads may
    be left out, and two variants of one class may name their head differently.

    Args:
        address: the layer, or the block that ends in it, as ``named_modules`` spells it.
        role: ``main``, ``aux`` (only in training), ``distillation``, ``projection`` (an embedding
            compared with others), ``coupled``: a layer that makes no class output itself and
            whose size follows the number of classes (a detector's box regressor),
            ``keypoints``: it makes one output for each keypoint, and no class, ``choice``: it
            scores each of several inputs, or ``span``: it scores where an answer starts and ends.
        factor: how many outputs in a row it has for each class; 4 for a box regressor.
        sync: paths of attributes that must equal what it counts, from the model, in addition to
            the family's.
        init: how the architecture draws its weight, where that is not what the layer's own
            constructor does: the name of a function in ``torch.nn.init`` and what follows the
            tensor among its arguments, ``("normal_", 0.0, 0.01)``.
        bias: the value that its bias starts from, where that is a constant.

    Raises:
        PluginError: a malformed address or path, an unknown role or function, a factor below one.

    Example:
        >>> from surgery.families.family import HeadClaim
        >>> HeadClaim("roi_heads.box_predictor.bbox_pred", "coupled", factor=4).factor
        4
    """

    address: str
    role: HeadRole = "main"
    factor: int = 1
    sync: tuple[str, ...] = ()
    init: tuple[Any, ...] | None = None
    bias: float | None = None

    def __post_init__(self) -> None:
        where = f"HeadClaim({self.address!r})"
        _check_address(self.address, f"{where}.address")
        for path in _different_strings("HeadClaim", self.address, "sync", self.sync, "num_classes"):
            _check_address(path, f"{where}.sync")
        self._check_start(where)
        if self.role not in get_args(HeadRole):
            raise PluginError(
                "unknown role of a head",
                where=f"{where}.role",
                expected=f"one of: {', '.join(get_args(HeadRole))}",
                found=repr(self.role),
                fix=f"HeadClaim({self.address!r}, 'main')",
            )
        if type(self.factor) is not int or self.factor < 1:
            raise PluginError(
                "a factor counts the outputs for each class",
                where=f"{where}.factor",
                expected="a whole number of at least 1",
                found=repr(self.factor),
                fix=f"HeadClaim({self.address!r}, {self.role!r}, factor=4)",
            )

    def _check_start(self, where: str) -> None:
        """First values that can be drawn: nothing is imported to find the function."""
        named = isinstance(self.init, tuple) and len(self.init) > 0
        if self.init is not None and not (named and str(self.init[0]).endswith("_")):
            raise PluginError(
                "this names no initialiser",
                where=f"{where}.init",
                expected="a tuple of a function in torch.nn.init and its further arguments",
                found=repr(self.init),
                fix=f"HeadClaim({self.address!r}, init=('normal_', 0.0, 0.01))",
            )
        if self.bias is not None and type(self.bias) not in (int, float):
            raise PluginError(
                "a bias starts from a number",
                where=f"{where}.bias",
                expected="a number, or None for what the layer's constructor draws",
                found=repr(self.bias),
                fix=f"HeadClaim({self.address!r}, bias=0.0)",
            )

    def covers(self, address: str) -> bool:
        """Whether an address is the claimed one or lies inside it."""
        return address == self.address or address.startswith(f"{self.address}.")


@dataclass(frozen=True)
class Family:
    """What a plugin knows of one architecture: data, not behaviour, wherever data will do.

    Args:
        name: what people call it, ``tinynet``.
        classes: qualified names of the model classes it claims, ``package.module.Class``.
            Subclasses are claimed too, unless a family claims them by their own name. Where a
            library has no base class for its models, ``package.*`` claims every class defined in
            that package that has the ``marker``; any closer claim beats it.
        marker: with ``package.*``, an attribute or method that the classes of models have and
            those of their parts lack.
        packages: top-level packages that hold the classes and the catalog.
        example: the input of one forward pass. Either the shape of a single floating tensor, a
            tuple of whole numbers and of attribute paths read from the model
            (``(2, "conv1.in_channels", 224, 224)``), or a callable from the model to a
            ``surgery.Example``. Two samples at least: BatchNorm refuses one in train mode.
        heads: the layers that make classes; or a callable from the model to that.
        headless: nothing in these models makes classes, whatever their outputs look like; or a
            callable from the model to whether that is so. A family that claims heads can only say
            so of one model at a time.
        background: the name of class 0, where these models treat it as "no object"; empty where
            they do not.
        notes: what a person should know who changes the number of classes of such a model.
        stages: the trunk in the order of execution, a tuple of addresses for each stage, for
            freezing and for layer-wise learning rates; or a callable from the model to that.
        stem: addresses of the part before the first stage, the layer that takes the input first;
            or a callable from the model to that.
            Stem, stages and heads together hold every parameter, and none twice.
        blocks: stem and stages in smaller parts, one for each block, for learning rates that
            differ from block to block; what is in none goes with the heads. Or such a callable.
        sync: paths of attributes that must equal the number of classes, ``config.num_labels``.
        resize: for models that are made for one size of images: a callable from the model and the
            new height and width to what follows, in the values of ``surgery.families.resizing``
            (a position embedding, a table of relative positions, an attribute). Left out, the
            size is free, or nobody can change it.
        renames: for each checkpoint dialect its rules, pairs of a regular expression and a
            replacement that ``re.sub`` applies in order to make this model's key.
        catalog: names it can build, each with a ``package.module:callable`` that takes no
            required argument; or a ``Catalog``, listed when somebody asks.

    Raises:
        PluginError: a field has a wrong type, is malformed, holds a duplicate or overlaps with
            another; the error names the family and the field.

    Example:
        >>> from surgery.families.family import Family, HeadClaim
        >>> family = Family(
        ...     name="tinynet",
        ...     classes=("tinynet.models.TinyNet",),
        ...     example=(2, 3, 32, 32),
        ...     heads=(HeadClaim("classifier"),),
        ... )
        >>> family.heads[0].role
        'main'
    """

    name: str
    classes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    example: ExampleSpec | None = None
    heads: tuple[HeadClaim, ...] | Callable[[nn.Module], tuple[HeadClaim, ...]] = ()
    headless: bool | Callable[[nn.Module], bool] = False
    background: str = ""
    notes: tuple[str, ...] = ()
    stages: Stages | Callable[[nn.Module], Stages] = ()
    stem: Stem | Callable[[nn.Module], Stem] = ()
    blocks: Stages | Callable[[nn.Module], Stages] = ()
    sync: tuple[str, ...] = ()
    resize: Resize | None = None
    renames: Mapping[str, Rules] = field(default_factory=dict, hash=False)
    catalog: Mapping[str, str] | Catalog = field(default_factory=dict, hash=False)
    marker: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise PluginError(
                "a family needs a name",
                where="Family.name",
                expected="letters, digits, '_', '-' and '.', for instance 'tinynet'",
                found=repr(self.name),
                fix="Family(name='tinynet', ...)",
            )
        self._check_names()
        self._check_example()
        self._check_resize()
        self._check_places()
        object.__setattr__(self, "renames", self._checked_mapping("renames", self.renames))
        if not isinstance(self.catalog, Catalog):
            object.__setattr__(self, "catalog", self._checked_mapping("catalog", self.catalog))
            for name, target in self.catalog.items():
                self._check_target(name, target)
        for dialect, rules in self.renames.items():
            self._check_rules(dialect, rules)

    @property
    def listed(self) -> dict[str, str]:
        """The names of the catalog, each with the same behind its package."""
        before = (self.packages or (self.name,))[0]
        return {name: f"{before}:{name}" for name in self.catalog}

    def _wrong(self, name: str, what: str, expected: str, found: object, fix: str) -> PluginError:
        return PluginError(
            f"family {self.name!r}: {what}",
            where=f"Family({self.name!r}).{name}",
            expected=expected,
            found=found if isinstance(found, str) else repr(found),
            fix=fix,
        )

    def _check_strings(self, name: str, value: object, sample: str) -> tuple[str, ...]:
        return _different_strings("Family", self.name, name, value, sample)

    def _check_names(self) -> None:
        sample = "package.module.Class"
        for cls in self._check_strings("classes", self.classes, sample):
            parts = (cls.removesuffix(".*") + ".x" if self.marker else cls).split(".")
            if len(parts) < 2 or not all(p.isidentifier() or p == "<locals>" for p in parts):
                raise self._wrong(
                    "classes",
                    f"{cls!r} is no qualified class name",
                    "the module and the class, joined by dots",
                    cls,
                    "f'{type(model).__module__}.{type(model).__qualname__}'",
                )
        if not self.classes:
            raise self._wrong(
                "classes", "it claims nothing", sample, "()", f"classes=('{sample}',)"
            )
        if not isinstance(self.marker, str):
            fix = "marker='forward_features'"
            raise self._wrong("marker", "marker has a wrong type", "a name", self.marker, fix)
        for package in self._check_strings("packages", self.packages, "package"):
            if not package.isidentifier():
                raise self._wrong(
                    "packages",
                    f"{package!r} is no top-level package",
                    "a name that stands after 'import', without dots",
                    package,
                    f"packages=({package.split('.')[0].replace('-', '_')!r},)",
                )
        for path in self._check_strings("sync", self.sync, "num_classes"):
            _check_address(path, f"Family({self.name!r}).sync")

    def _check_example(self) -> None:
        spec = self.example
        if spec is None or callable(spec):
            return
        whole = isinstance(spec, tuple) and len(spec) > 0
        if not whole or not all(_is_size(item) or isinstance(item, str) for item in spec):
            raise self._wrong(
                "example",
                "example has a wrong type",
                "a tuple of sizes above zero and attribute paths, or a callable that takes the "
                "model and returns a surgery.Example",
                spec,
                "example=(2, 3, 224, 224)",
            )

    def _check_resize(self) -> None:
        if self.resize is not None and not callable(self.resize):
            raise self._wrong(
                "resize",
                "resize has a wrong type",
                "a callable from the model and (height, width) to what follows",
                self.resize,
                "resize=lambda model, size: [Fixed('', 'image_size', size[0])]",
            )

    def _check_places(self) -> None:
        claims = () if callable(self.heads) else self.heads
        if not are_claims(claims):
            raise self._wrong(
                "heads",
                "heads has a wrong type",
                "a tuple of HeadClaim, or a callable",
                self.heads,
                "heads=(HeadClaim('classifier'),)",
            )
        unsaid = self.headless is False or callable(self.headless)
        if not unsaid and (self.headless is not True or self.heads):
            raise self._wrong(
                "headless",
                "a family claims heads, or says that there are none",
                "True where heads is empty, False, or a callable that says so of one model",
                f"headless={self.headless!r}, {len(claims) or 'perhaps'} heads",
                "leave headless out",
            )
        self._check_strings("notes", self.notes, "class 0 is never a label")
        if not isinstance(self.background, str):
            raise self._wrong(
                "background",
                "background has a wrong type",
                "the name of class 0",
                self.background,
                "background='__background__'",
            )
        layers = [("heads", head.address) for head in claims]
        places = list(layers)
        if not callable(self.stem):
            stem = self._check_strings("stem", self.stem, "conv1")
            places += [("stem", address) for address in stem]
        places += self._checked_parts("stages")
        # They are the stem and the stages once more.
        blocks = layers + self._checked_parts("blocks")
        for name, address in places + blocks:
            _check_address(address, f"Family({self.name!r}).{name}")
        for (name, address), (other_name, other) in (*overlaps(places), *overlaps(blocks)):
            raise self._wrong(
                name,
                f"{address!r} ({name}) and {other!r} ({other_name}) overlap",
                "each part of the model in one place only",
                f"{address!r} in {name}, {other!r} in {other_name}",
                f"leave {other!r} out of one of them",
            )

    def _checked_parts(self, name: str) -> list[tuple[str, str]]:
        parts = getattr(self, name)
        if callable(parts):
            return []
        if not isinstance(parts, tuple):
            expected = "a tuple with a tuple of addresses for each, or a callable"
            fix = f"{name}=(('layer1',), ('layer2',))"
            raise self._wrong(name, f"{name} has a wrong type", expected, parts, fix)
        for part in parts:
            if not self._check_strings(name, part, "layer1"):
                what = f"one of the {name} is empty"
                raise self._wrong(name, what, "at least one address", "()", "leave it out")
        return [(name, address) for part in parts for address in part]

    def _checked_mapping(self, name: str, value: object) -> dict[str, Any]:
        """A copy, so that the caller's dict may go on changing."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
            raise self._wrong(
                name, f"{name} has a wrong type", "a dict with names as keys", value, f"{name}={{}}"
            )
        return dict(value)

    def _check_rules(self, dialect: str, rules: object) -> None:
        sample = "(('^features\\.', 'backbone.'),)"
        if not isinstance(rules, tuple) or not all(
            isinstance(rule, tuple) and len(rule) == 2 and all(isinstance(x, str) for x in rule)
            for rule in rules
        ):
            raise self._wrong(
                f"renames[{dialect!r}]",
                "the rules of a dialect have a wrong type",
                "a tuple of (pattern, replacement) pairs of strings",
                rules,
                f"renames={{{dialect!r}: {sample}}}",
            )
        for pattern, replacement in rules:
            try:
                # Empty groups under the pattern's names let the replacement be tried on its own.
                known = re.compile(pattern)
                names = {number: f"?P<{name}>" for name, number in known.groupindex.items()}
                groups = "".join(f"({names.get(i, '')})" for i in range(1, known.groups + 1))
                re.sub(groups, replacement, "")
            except (re.error, IndexError) as error:
                raise self._wrong(
                    f"renames[{dialect!r}]",
                    f"{pattern!r} -> {replacement!r} is no valid rule",
                    "a regular expression and a replacement for re.sub",
                    str(error),
                    f"re.sub({pattern!r}, {replacement!r}, key)",
                ) from error

    def _check_target(self, name: str, target: object) -> None:
        parts = target.split(":") if isinstance(target, str) else []
        if len(parts) != 2 or not all(x.isidentifier() for part in parts for x in part.split(".")):
            raise self._wrong(
                f"catalog[{name!r}]",
                f"{name!r} leads to nothing that can be imported",
                "'package.module:callable'",
                target,
                f"catalog={{{name!r}: 'package.module:{name}'}}",
            )


@dataclass(frozen=True)
class Claim:
    """A family found for a model, and how.

    Attributes:
        family: what is known of the model.
        plugin: the plugin that says so.
        class_name: the claimed class: the model's own, or the nearest of its bases.
        exact: whether it is the model's own class and not a base of it.
    """

    family: Family
    plugin: str
    class_name: str
    exact: bool


def are_claims(value: object) -> bool:
    """Whether a value is a tuple of claims on heads."""
    return isinstance(value, tuple) and all(isinstance(item, HeadClaim) for item in value)


def overlaps(
    places: Sequence[tuple[str, str]],
) -> Iterable[tuple[tuple[str, str], tuple[str, str]]]:
    """The pairs of (label, address) of which one address is the other or lies inside it."""
    for position, (label, address) in enumerate(places):
        for other_label, other in places[position + 1 :]:
            if f"{address}.".startswith(f"{other}.") or f"{other}.".startswith(f"{address}."):
                yield (label, address), (other_label, other)


def contradicted(
    family: Family, found: str, *, expected: str | None = None, plugin: str | None = None
) -> ClaimContradictedError:
    """The error that shows what a family says beside what the graph shows.

    Args:
        family: the family that claimed the model.
        found: what the graph shows, for instance ``"fc.2 (main, 1000 classes)"``.
        expected: what the family says; its head claims, if left out.
        plugin: the plugin it comes from, where that is known.

    Example:
        >>> from surgery.families.family import Family, HeadClaim, contradicted
        >>> family = Family("tinynet", ("tinynet.TinyNet",), heads=(HeadClaim("classifier"),))
        >>> print(contradicted(family, "fc (main, 10 classes)"))
        the graph shows something else than family 'tinynet' says
          where: Family('tinynet').heads
          expected: classifier (main)
          found: fc (main, 10 classes)
          next: correct the claim, and run surgery.testing.check_family(family)
    """
    by = f" (plugin {plugin!r})" if plugin else ""
    known = () if callable(family.heads) else family.heads
    claims = ", ".join(f"{head.address} ({head.role})" for head in known)
    return ClaimContradictedError(
        f"the graph shows something else than family {family.name!r}{by} says",
        where=f"Family({family.name!r}).heads",
        expected=expected if expected is not None else claims or "no head",
        found=found,
        fix="correct the claim, and run surgery.testing.check_family(family)",
    )


def _different_strings(
    kind: str, owner: str, name: str, value: object, sample: str
) -> tuple[str, ...]:
    """A tuple of different strings, or an error; one string is the commonest mistake."""
    strings = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    twice = [item for item in value if value.count(item) > 1] if strings else []  # type: ignore[attr-defined]
    if strings and not twice:
        return value  # type: ignore[return-value]
    what, expected, fix = f"{name} has a wrong type", "a tuple of strings", f"{name}=({sample!r},)"
    if twice:
        what, expected = f"{twice[0]!r} stands twice in {name}", "each once"
        fix = f"name {twice[0]!r} once"
    elif isinstance(value, str):
        fix = f"{name}=({value!r},)"
    raise PluginError(
        f"{'family' if kind == 'Family' else kind} {owner!r}: {what}",
        where=f"{kind}({owner!r}).{name}",
        expected=expected,
        found=repr(value),
        fix=fix,
    )


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _check_address(address: object, where: str) -> None:
    if not isinstance(address, str) or not address or not all(address.split(".")):
        raise PluginError(
            "this is no address",
            where=where,
            expected="the path that named_modules spells, for instance 'classifier.6'",
            found=repr(address),
            fix="for address, _ in model.named_modules(): print(address)",
        )
