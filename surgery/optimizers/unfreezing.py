"""When which part of a model begins to train: a plan that is data, and outlives the process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from surgery import tree
from surgery.errors import ArgumentError, PlanError
from surgery.families.registry import Registry
from surgery.operations.freezing import freeze, unfreeze
from surgery.operations.plan import Outcome
from surgery.operations.selection import select
from surgery.optimizers.stages import Layers, Stage, stages_of
from surgery.patterns import Patterns, prefixes
from surgery.shown import Shown

_VERSION = 1


@dataclass(frozen=True)
class Phase:
    """A stage of a model, and the epoch from which it trains.

    Attributes:
        name: of the stage: ``stem``, an address, ``head``, ``depth 3``.
        epoch: the first epoch in which it trains.
        parts: the addresses that are frozen before.
    """

    name: str
    epoch: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Unfreezing(Shown):
    """When which stage of a model begins to train.

    It holds names and numbers alone: ``as_dict()`` goes into a checkpoint or a JSON file,
    ``Unfreezing.from_dict`` reads it again, and ``apply(model, epoch)`` brings any model with
    these addresses to where it was.

    Attributes:
        phases: every stage, the first one first.

    Example:
        >>> import json, torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> plan = surgery.unfreezing(model, every=2)
        >>> plan.at(0), plan.at(2)
        (('depth 2',), ('depth 1', 'depth 2'))
        >>> outcomes = plan.apply(model, epoch=0)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['2.weight', '2.bias']
        >>> plan.apply(model, epoch=1)
        ()
        >>> surgery.Unfreezing.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
        True
    """

    phases: tuple[Phase, ...]

    def at(self, epoch: int) -> tuple[str, ...]:
        """The names of the stages that train in an epoch, counted from 0."""
        _check_epoch(epoch)
        return tuple(phase.name for phase in self.phases if phase.epoch <= epoch)

    def apply(
        self, model: nn.Module, epoch: int, *, registry: Registry | None = None
    ) -> tuple[Outcome, ...]:
        """Bring a model to where it is in an epoch; nothing where it is there already.

        Args:
            model: a model that has the addresses of the plan.
            epoch: counted from 0.
            registry: the plugins to ask; those installed, if left out.

        Returns:
            The outcomes of freezing and unfreezing, those that changed anything. An optimizer
            over all parameters goes on as it is: ``parameter_groups(model, frozen=True)``.

        Raises:
            ArgumentError: no epoch.
            PlanError: the model lacks an address of the plan. Nothing was touched.
        """
        _check_epoch(epoch)
        tree.check_changeable(model)
        self._check_parts(model)
        done: list[Outcome] = []
        trains = [part for phase in self.phases if phase.epoch <= epoch for part in phase.parts]
        rests = [part for phase in self.phases if phase.epoch > epoch for part in phase.parts]
        try:
            for verb, parts, others in (freeze, rests, trains), (unfreeze, trains, rests):
                if parts:
                    outcome = verb(model, parts, except_=others, registry=registry)
                    done.append(outcome)
                    if not outcome.plan.steps:
                        done.pop().undo()
        except BaseException:
            for outcome in reversed(done):
                outcome.undo()
            raise
        return tuple(done)

    def _check_parts(self, model: nn.Module) -> None:
        known = {
            prefix
            for entry in tree.index(model).tensors.values()
            for address in entry.addresses
            for prefix in prefixes(address)
        }
        for phase in self.phases:
            for part in phase.parts:
                if part not in known:
                    raise PlanError(
                        "this plan was made for a model with other addresses",
                        where=f"{phase.name}: {part}",
                        expected="every address of the plan",
                        found=f"none such in this {type(tree.unwrap(model)).__name__}",
                        fix="surgery.unfreezing(model) makes a plan for this one",
                    )

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain data, for a checkpoint or a JSON file."""
        phases = [
            {"name": phase.name, "epoch": phase.epoch, "parts": list(phase.parts)}
            for phase in self.phases
        ]
        return {"version": _VERSION, "phases": phases}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Unfreezing:
        """A plan out of the data that ``as_dict`` gave.

        Args:
            data: as it came out of the checkpoint or the file.

        Raises:
            ArgumentError: it is no such data.
        """
        phases = data.get("phases") if isinstance(data, Mapping) else None
        if not isinstance(phases, list) or data.get("version") != _VERSION:
            raise _no_plan(data)
        if not all(map(_is_phase, phases)):
            raise _no_plan(phases)
        return Unfreezing(
            tuple(Phase(each["name"], each["epoch"], tuple(each["parts"])) for each in phases)
        )


def unfreezing(
    model: nn.Module,
    every: int = 1,
    *,
    epochs: Mapping[str, int] | None = None,
    except_: Patterns = (),
    layers: Layers = None,
    example: Any = None,
    registry: Registry | None = None,
) -> Unfreezing:
    """Plan to unfreeze a model stage by stage, from the head down; the model stays as it is.

    Args:
        model: any module.
        every: how many epochs each stage trains before the one in front of it begins.
        epochs: for stages by name: the first epoch in which they train, instead.
        except_: what the plan leaves alone, and stays frozen or trainable as it is: addresses or
            patterns, as in ``freeze``. A stage of which nothing is left is none.
        layers: divide the depth of the graph into this many stages, whatever the family says; or
            ``"blocks"``: each block that the family knows is a stage.
        example: for recording: the arguments of one forward pass, if they are needed.
        registry: the plugins to ask; those installed, if left out.

    Returns:
        The plan. ``plan.apply(model, epoch)`` at the beginning of each epoch carries it out.

    Raises:
        ArgumentError: no number of epochs, a stage that the model does not have, or a pattern that
            fits nothing.
        RecordError: no family knows the stages, and the model cannot be recorded.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(*(nn.Linear(4, 4) for layer in range(3)))
        >>> plan = surgery.unfreezing(model, every=5, epochs={"depth 1": 20})
        >>> [(phase.name, phase.epoch) for phase in plan.phases]
        [('depth 1', 20), ('depth 2', 5), ('depth 3', 0)]
    """
    tree.check_model(model)
    _check_epoch(every, "every")
    alone = select(model, except_, "except_", example=example, registry=registry)
    found, _ = stages_of(model, layers=layers, example=example, registry=registry)
    stages = [left for stage in found if (left := _less(stage, alone, model)).parts]
    names = [stage.name for stage in stages]
    given = _given(epochs)
    for name, epoch in given.items():
        _check_epoch(epoch, f"epochs[{name!r}]")
        if name not in names:
            raise ArgumentError(
                "the model has no such stage",
                where=f"epochs[{name!r}]",
                expected=", ".join(names),
                found=repr(name),
                fix=f"surgery.unfreezing(model, epochs={{{names[0] if names else 'head'!r}: 10}})",
            )
    last = len(stages) - 1
    return Unfreezing(
        tuple(
            Phase(stage.name, given.get(stage.name, (last - number) * every), stage.parts)
            for number, stage in enumerate(stages)
        )
    )


def _less(stage: Stage, alone: frozenset[str], model: nn.Module) -> Stage:
    """A stage less what is left alone, under any of its addresses."""
    if not alone:
        return stage
    entries = tree.index(model).of_kind("parameter")
    left = {entry.address for entry in entries if alone.isdisjoint(entry.addresses)}
    parts = tuple(address for address in stage.parameters if address in left)
    return stage if parts == stage.parameters else replace(stage, parts=parts)


def _given(epochs: object) -> Mapping[str, int]:
    if epochs is None or isinstance(epochs, Mapping):
        return epochs or {}
    raise ArgumentError(
        "epochs says for stages by name in which epoch they begin to train",
        where="epochs",
        expected="a dict of names and whole numbers",
        found=repr(epochs),
        fix="surgery.unfreezing(model, every=5, epochs={'stem': 20})",
    )


def _check_epoch(epoch: object, where: str = "epoch") -> None:
    if type(epoch) is not int or epoch < 0:
        raise ArgumentError(
            "epochs are counted from 0",
            where=where,
            expected="a whole number, not below 0",
            found=repr(epoch),
            fix="plan.apply(model, epoch=0)"
            if where == "epoch"
            else "surgery.unfreezing(model, every=5)",
        )


def _is_phase(value: object) -> bool:
    if not isinstance(value, Mapping) or value.keys() != {"name", "epoch", "parts"}:
        return False
    parts: Any = value["parts"]
    texts: Iterable[object] = parts if isinstance(parts, list | tuple) else [None]
    right = all(isinstance(each, str) for each in (value["name"], *texts))
    return right and type(value["epoch"]) is int and value["epoch"] >= 0


def _no_plan(found: object) -> ArgumentError:
    return ArgumentError(
        "this is no plan of unfreezing",
        where="data",
        expected=f"what as_dict() gave: version {_VERSION} and phases with name, epoch and parts",
        found=repr(found)[:200],
        fix="surgery.unfreezing(model) makes one",
    )
