"""What a saved file says of the model, as text: written here, and read back with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgery.errors import CorruptFileError, PlanError
from surgery.operations.literals import decode, encode
from surgery.operations.made import Made
from surgery.operations.portrait import Form, Placed, Portrait
from surgery.operations.recorded import KEY, VERSION
from surgery.weights.brief import brief
from surgery.weights.header import RepeatedError, unrepeated

_TRAINING, _STILL = 1, 2
# How deep modules may nest.
_DEEPEST = 200


@dataclass(frozen=True)
class Origin:
    """What a model began as, and what was done since, as far as a file says so.

    Attributes:
        target: the name of what builds it: of a catalog, or ``package.module:callable``.
        options: the arguments it was built with, beside the number of classes.
        recipe: the recipe that made the file, as plain data.
    """

    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """A portrait, and what else a file keeps of a model.

    Attributes:
        portrait: what the model is.
        operations: which operations made it.
        classes: the names of its classes, as far as they were only remembered beside it.
        strides: of tensors that fill their memory in another order of axes, by first address.
        versions: of what it was made with, by package.
        origin: what the model began as. Nobody has checked it: to build what it names is for
            whoever restores the file to decide.
    """

    portrait: Portrait
    operations: tuple[Made, ...]
    classes: tuple[str, ...] | None
    strides: Mapping[str, tuple[int, ...]]
    versions: Mapping[str, str]
    origin: Origin | None = None


def written(record: Record) -> str:
    """The record as JSON: the same record, the same text."""
    forms: dict[str, int] = {}
    modules = {}
    for address, placed in record.portrait.modules.items():
        text = json.dumps(_form_json(placed.form), separators=(",", ":"))
        flags = _TRAINING * placed.training | _STILL * placed.still
        modules[address] = [forms.setdefault(text, len(forms)), flags]
    shared = [p.addresses for p in record.portrait.modules.values() if len(p.addresses) > 1]
    portrait = record.portrait
    content: dict[str, Any] = {
        "version": VERSION,
        "made with": dict(record.versions),
        "operations": [
            {"title": made.title, "call": None if made.call is None else encode(dict(made.call))}
            for made in record.operations
        ],
        "classes": record.classes,
        "modules": modules,
        "shared modules": shared,
        "tensors": list(portrait.tensors),
        "ties": [addresses for addresses in portrait.tensors.values() if len(addresses) > 1],
        "frozen": [first for first in portrait.tensors if first in portrait.frozen],
        "strides": dict(record.strides),
        "forms": [json.loads(text) for text in forms],
    }
    if record.origin is not None:
        content["target"] = record.origin.target
        content["options"] = encode(dict(record.origin.options))
        if record.origin.recipe is not None:
            content["recipe"] = encode(dict(record.origin.recipe))
    return json.dumps(content, separators=(",", ":"))


def _form_json(form: Form) -> dict[str, Any]:
    found = {
        "class": form.kind,
        "facts": dict(form.facts),
        "opaque": form.opaque,
        "parameters": dict(form.parameters),
        "buffers": dict(form.buffers),
        "passing": form.passing,
        "modules": dict(form.modules),
        "hooks": form.hooks,
    }
    return {name: value for name, value in found.items() if value}


def read_record(metadata: Mapping[str, str], where: str) -> Record:
    """Read the record of a file that nobody has checked.

    Args:
        metadata: of the file.
        where: its path, for errors.

    Raises:
        PlanError: the file holds no record, or one of a later version.
        CorruptFileError: the record is malformed.
    """
    text = metadata.get(KEY)
    if text is None:
        raise PlanError(
            "this file does not say what the model is: surgery.save did not write it",
            where=where,
            expected=f"metadata under {KEY!r}",
            found=", ".join(map(repr, sorted(metadata)[:8])) or "no metadata",
            fix=f"surgery.load_weights(model, {where!r})",
        )
    reader = _Reader(where)
    try:
        content = json.loads(text, object_pairs_hook=unrepeated)
    except (RepeatedError, ValueError, RecursionError) as error:
        raise reader.broken("the record is no valid JSON", "JSON", brief(str(error))) from error
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is int and version > VERSION:
        raise PlanError(
            "this file was written by a later version of surgery",
            where=where,
            expected=f"a record of version {VERSION} or earlier",
            found=brief(version),
            fix="pip install --upgrade torch-surgery",
        )
    if version != VERSION or type(version) is not int:
        raise reader.broken("the record has no version", str(VERSION), brief(version))
    return reader.record(content)


class _Reader:
    """Takes JSON apart that may hold anything."""

    def __init__(self, where: str) -> None:
        self.where = where

    def broken(self, what: str, expected: object, found: object) -> CorruptFileError:
        return CorruptFileError(
            what,
            where=self.where,
            expected=expected,
            found=found,
            fix="surgery.save(model, path) writes a valid one",
        )

    def entry(self, content: Mapping[str, Any], name: str, kind: type) -> Any:
        value = content.get(name, kind())
        if not isinstance(value, kind):
            raise self.broken(f"{name!r} in the record is malformed", kind.__name__, brief(value))
        return value

    def texts(self, value: object, name: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.broken(f"{name!r} in the record is malformed", "texts", brief(value))
        return tuple(value)

    def record(self, content: Mapping[str, Any]) -> Record:
        forms = [self.form(form) for form in self.entry(content, "forms", list)]
        shared = self.groups(content, "shared modules")
        modules = {
            address: self.placed(address, pair, forms, shared)
            for address, pair in self.entry(content, "modules", dict).items()
        }
        if "" not in modules:
            raise self.broken("the record has no model", "a module at ''", f"{len(modules)} others")
        firsts = self.texts(self.entry(content, "tensors", list), "tensors")
        ties = self.groups(content, "ties")
        tensors = {first: ties.get(first, (first,)) for first in firsts}
        frozen = frozenset(self.texts(self.entry(content, "frozen", list), "frozen"))
        classes = content.get("classes")
        return Record(
            Portrait(modules, tensors, frozen),
            tuple(self.operation(each) for each in self.entry(content, "operations", list)),
            None if classes is None else self.texts(classes, "classes"),
            {a: self.sizes(s) for a, s in self.entry(content, "strides", dict).items()},
            {n: brief(v) for n, v in self.entry(content, "made with", dict).items()},
            self.origin(content) if "target" in content else None,
        )

    def origin(self, content: Mapping[str, Any]) -> Origin:
        options = decode(content.get("options", {"dict": []}), self.where)
        recipe = decode(content.get("recipe"), self.where)
        named = isinstance(options, dict) and all(isinstance(name, str) for name in options)
        if not named or not (recipe is None or isinstance(recipe, dict)):
            found = brief((options, recipe))
            raise self.broken("the record says wrongly what it was built with", "names", found)
        return Origin(self.entry(content, "target", str), options, recipe)

    def groups(self, content: Mapping[str, Any], name: str) -> dict[str, tuple[str, ...]]:
        """Addresses of one thing by the first; no address stands in two groups."""
        groups = [self.texts(group, name) for group in self.entry(content, name, list)]
        flat = [address for group in groups for address in group]
        if len(set(flat)) < len(flat) or not all(groups):
            raise self.broken(f"{name!r} in the record is malformed", "each once", brief(flat))
        return {group[0]: group for group in groups}

    def placed(
        self, address: str, pair: object, forms: list[Form], shared: Mapping[str, tuple[str, ...]]
    ) -> Placed:
        number, flags = pair if isinstance(pair, list) and len(pair) == 2 else (-1, -1)
        deep = address.count(".") > _DEEPEST
        if deep or number not in range(len(forms)) or flags not in range((_TRAINING | _STILL) + 1):
            raise self.broken(f"the module {brief(address)} is malformed", "a form", brief(pair))
        addresses = shared.get(address, (address,))
        return Placed(forms[number], addresses, bool(flags & _TRAINING), bool(flags & _STILL))

    def form(self, form: object) -> Form:
        if not isinstance(form, dict):
            raise self.broken("a form in the record is malformed", "an object", brief(form))
        slots = [self.entry(form, name, dict) for name in ("parameters", "buffers", "modules")]
        for value in (value for each in slots for value in each.values()):
            if not isinstance(value, bool):
                raise self.broken("a form in the record is malformed", "a bool", brief(value))
        for name in (name for each in slots for name in each):
            if "." in name or not name:
                raise self.broken("a part has no valid name", "a name", brief(name))
        return Form(
            self.entry(form, "class", str),
            self.entry(form, "facts", dict),
            self.texts(self.entry(form, "opaque", list), "opaque"),
            slots[0],
            slots[1],
            self.texts(self.entry(form, "passing", list), "passing"),
            slots[2],
            self.texts(self.entry(form, "hooks", list), "hooks"),
        )

    def operation(self, value: object) -> Made:
        if not isinstance(value, dict):
            raise self.broken("an operation in the record is malformed", "an object", brief(value))
        call = decode(value.get("call"), self.where)
        if call is not None and not isinstance(call, dict):
            raise self.broken("an operation in the record is malformed", "a call", brief(call))
        return Made(self.entry(value, "title", str), call)

    def sizes(self, value: object) -> tuple[int, ...]:
        valid = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
        if not valid:
            raise self.broken("strides in the record are malformed", "sizes", brief(value))
        return tuple(value)  # type: ignore[arg-type]
