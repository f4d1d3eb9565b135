"""What an operation is going to do, and what it did: Step, Plan, Check, Outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import nn

from surgery import tree
from surgery.graph.example import Example
from surgery.graph.graph import Spec
from surgery.parameters import Audit
from surgery.shown import Shown

if TYPE_CHECKING:
    from surgery.operations.undoing import Operated
    from surgery.weights.verdicts import Matching

StepKind: TypeAlias = Literal[
    "module", "parameter", "buffer", "values", "left", "attribute", "flag", "root"
]


@dataclass(frozen=True)
class Carried:
    """Which entries of a new tensor come from which of the one it replaces, along one axis.

    Attributes:
        axis: the axis, of both.
        sources: for each entry of the new tensor the old ones it comes from: none for one that is
            new, several for one that takes the place of all of them.
        factors: what the old values are multiplied by before they are added up, as ``sources``;
            empty for their mean, None where the values were made in another way.
    """

    axis: int
    sources: tuple[tuple[int, ...], ...]
    factors: tuple[tuple[float, ...], ...] | None = ()


@dataclass(frozen=True)
class Step:
    """One thing that changes, at every one of its addresses.

    Attributes:
        kind: ``module``, ``parameter`` or ``buffer`` (another tensor); ``values`` (the tensor
            stays and gets other values); ``left`` (its memory went to another model, and a
            stand-in on meta stays behind); ``attribute`` (a fact such as ``num_classes``);
            ``flag`` (``requires_grad`` of a parameter); ``root`` (the model itself becomes
            another object).
        addresses: where; for an attribute its full path, ``backbone.config.num_labels``.
        module: for an attribute, the address of the module it hangs on.
        elsewhere: for a parameter or buffer: it may have another dtype or device than what it
            replaces.
        before: what is there, in words.
        after: what will be there, in words.
        new: what is installed; for ``values`` their ``Content``.
        carried: for a parameter or buffer: what of the old one lives on in the new one, None
            where nothing does.
    """

    kind: StepKind
    addresses: tuple[str, ...]
    before: str
    after: str
    new: Any = field(repr=False, compare=False, default=None)
    module: str = ""
    elsewhere: bool = False
    carried: Carried | None = field(repr=False, compare=False, default=None)

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]

    @property
    def path(self) -> str:
        """For an attribute: its path from its module."""
        return self.address[len(self.module) :].lstrip(".")

    def __str__(self) -> str:
        where = " = ".join(address or "(the model itself)" for address in self.addresses)
        return f"{self.kind} {where}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class OutputChange:
    """One output in one mode, before and after.

    Attributes:
        mode: ``eval`` or ``train``.
        path: where in the returned structure.
        before: shape and dtype before.
        after: shape and dtype that must come out afterwards.
        class_axes: the axes that follow the number of classes.
    """

    mode: str
    path: str
    before: Spec | None
    after: Spec
    class_axes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.path} ({self.mode}): {self.before} -> {self.after}"


@dataclass(frozen=True)
class Plan(Shown):
    """What an operation is going to do, and what must hold afterwards. Nothing is touched yet.

    Attributes:
        title: the operation, as a person would say it.
        steps: what changes, in order.
        outputs: every output in every mode that could be recorded, before and after.
        parameters: number of parameters before and after, shared ones counted once.
        probes: for ``replace_head``: the numbers of classes with which the class axes were found,
            by head address; they equal no other dimension.
        features: for ``remove_head``: the size of the features that come out, by head address.
        classes: for ``replace_head``: the names of the new classes, empty where they have none.
        feature_size: their size where it is one number, auxiliary heads aside.
        notes: what a person should know: blind spots, ties that end, facts that cannot follow.
        example: the arguments the checks run with.
        matching: for ``load_weights``: the verdict on every key of the source and of the model.
        call: the verb and its arguments, those that are plain data.
        audits: the counts of the model before and after, for whoever draws them. They are taken
            when it happens (of a dry run: on its rehearsal), since later the model has gone on;
            each costs less than a hundredth of an operation, and rows only when asked for.
    """

    title: str
    steps: tuple[Step, ...]
    outputs: tuple[OutputChange, ...]
    parameters: tuple[int, int]
    probes: Mapping[str, int] = field(default_factory=dict)
    features: Mapping[str, int] = field(default_factory=dict)
    feature_size: int | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    example: Example | None = field(repr=False, compare=False, default=None)
    matching: Matching | None = field(repr=False, default=None)
    call: Mapping[str, Any] | None = field(repr=False, compare=False, default=None)
    audits: tuple[Audit, Audit] | None = field(repr=False, compare=False, default=None)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in which the outputs are checked."""
        return tuple(dict.fromkeys(change.mode for change in self.outputs))


@dataclass(frozen=True)
class Check:
    """One thing that was verified after an operation.

    Attributes:
        name: what was checked.
        passed: whether it held.
        finding: what was seen, in words.
    """

    name: str
    passed: bool
    finding: str

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILED'}  {self.name}: {self.finding}"


@dataclass(frozen=True, eq=False)
class Outcome(Shown):
    """What an operation did.

    A deep or unpickled copy shows all of it, and cannot be undone.

    Attributes:
        model: the same model object, or a new one where the root itself was replaced.
        plan: what was planned, and then done.
        checks: what was verified, and what it showed. Empty for a dry run.
        old: the tensors that were replaced, by address.
        new: the tensors that were installed, by address.
        operated: what ``undo`` needs; None for a dry run.
    """

    model: nn.Module
    plan: Plan
    checks: tuple[Check, ...] = ()
    old: Mapping[str, torch.Tensor] = field(repr=False, default_factory=dict)
    new: Mapping[str, torch.Tensor] = field(repr=False, default_factory=dict)
    operated: Operated | None = field(repr=False, default=None)

    @property
    def feature_size(self) -> int | None:
        """For ``remove_head``: the size of the features, where it is one number."""
        return self.plan.feature_size

    def undo(self) -> nn.Module:
        """Restore everything the operation changed, bit for bit, also after training.

        Where the model moved to another device or dtype since, what comes back moves with it.
        Untouched weights keep what training made of them. Generators of random numbers go back
        as well, those that nobody drew from since.

        Returns:
            The model as it was: the same object that the operation was given.

        Raises:
            UndoError: it was a dry run, was undone or committed already, a later operation
                stands on this one (undo that first), a replaced part was replaced since, or this
                is a copy of the outcome.
        """
        from surgery.operations.undoing import undo

        return undo(self)

    def commit(self) -> None:
        """Let go of what ``undo`` would need: it is impossible then, and ``old`` is empty."""
        if self.operated is not None:
            self.operated.commit()


def tensors_of(steps: tuple[Step, ...]) -> dict[str, torch.Tensor]:
    """The tensors that steps install, by every address."""
    found: dict[str, torch.Tensor] = {}
    for step in steps:
        for address in step.addresses:
            if step.kind in ("parameter", "buffer"):
                found[address] = step.new
            elif step.kind in ("module", "root"):
                for entry in tree.index(step.new).tensors.values():
                    for inner in entry.addresses:
                        found[tree.join(address, inner)] = entry.tensor
    return found
