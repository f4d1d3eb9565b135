"""Where a model makes its classes: heads, and the evidence that they are heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from surgery.families.family import HeadRole
from surgery.families.registry import Registry
from surgery.shown import Shown

EvidenceSource: TypeAlias = Literal["graph", "attribute", "family", "caller"]


@dataclass(frozen=True)
class Evidence:
    """One reason to take a layer for a head.

    Attributes:
        source: ``graph`` (it is the nearest mixing operation behind an output), or what
            corroborates that: ``attribute``, ``family``, ``caller``.
        says: the finding, in words.
    """

    source: EvidenceSource
    says: str


@dataclass(frozen=True)
class HeadOutput:
    """An output that a head makes, and where the classes are in it.

    Attributes:
        path: where in the returned structure: ``output.logits``.
        axis: the class axis.
        size: the size of that axis; more than the head's ``num_classes`` where several heads
            are joined along it.
        modes: the modes in which the output exists: ``eval``, ``train``.
    """

    path: str
    axis: int
    size: int
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Head(Shown):
    """A layer (or a bare parameter) that makes a class output.

    Attributes:
        address: the module that owns the weight, or the parameter itself where it hangs on a
            module that does other things too.
        addresses: all addresses of that module or parameter.
        kind: ``linear``, ``conv1d`` to ``conv3d``, ``conv_transpose1d`` to ``3d``, ``bilinear``,
            ``embedding`` (used as output layer), ``custom`` (a layer of a class unknown to
            torch), ``parameter``, or ``computed`` (a weight that several layers make).
        in_features: size of the features each class is computed from.
        num_classes: how many classes it makes.
        role: ``main``, ``aux`` (made in train mode only, or named so), or a family's word.
        outputs: the outputs it makes.
        weights: for each parameter of its weight, all addresses.
        tied_to: where else its weight is used.
        evidence: why it is taken for a head.
    """

    address: str
    addresses: tuple[str, ...]
    kind: str
    in_features: int
    num_classes: int
    role: HeadRole
    outputs: tuple[HeadOutput, ...]
    weights: tuple[tuple[str, ...], ...]
    tied_to: tuple[str, ...]
    evidence: tuple[Evidence, ...]

    @property
    def corroborated(self) -> bool:
        """Whether something besides the graph says that this is a head."""
        return any(item.source != "graph" for item in self.evidence)

    @property
    def class_axis(self) -> int:
        """The class axis of its first output."""
        return self.outputs[0].axis

    @property
    def output(self) -> str:
        """The path of its first output."""
        return self.outputs[0].path


class Heads(Shown, tuple[Head, ...]):
    """The heads of a model, as a tuple, with a sentence on what the model ends in.

    Attributes:
        ending: what the graph shows behind each output; the answer where there is no head.
    """

    ending: str

    def __new__(cls, heads: tuple[Head, ...] = (), ending: str = "") -> Heads:
        """Make the tuple."""
        made = super().__new__(cls, heads)
        made.ending = ending
        return made

    def __getnewargs__(self) -> tuple[tuple[Head, ...], str]:
        return tuple(self), self.ending

    def __repr__(self) -> str:
        return f"Heads({tuple(self)!r}, ending={self.ending!r})"


def find_heads(model: nn.Module, example: Any = None, *, registry: Registry | None = None) -> Heads:
    """Find the layers that make the class outputs of a model.

    Walks back from every output, in eval and in train mode, to the nearest operations that mix
    features with parameters. What the walk yields are candidates; a head is corroborated where a
    family, or an attribute such as ``num_classes`` with that number, says so too.

    Args:
        model: any module. It is neither run nor touched.
        example: the arguments of one forward pass; left out, it is supplied or inferred.
        registry: the plugins to ask; those installed, if left out. ``Registry.of()`` asks none.

    Returns:
        The heads in the order of the outputs they make, corroborated or not. Where there is
        none, ``.ending`` says what the model ends in.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        ExampleError: no example could be inferred, or forward does not take it.
        RecordError: forward raised.
        ClaimContradictedError: the family of the model claims another layer than the graph shows.

    Example:
        >>> import torch, surgery
        >>> first, last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 5)
        >>> model = torch.nn.Sequential(first, torch.nn.ReLU(), last)
        >>> head = surgery.find_heads(model, torch.zeros(2, 8))[0]
        >>> head.address, head.kind, head.in_features, head.num_classes, head.corroborated
        ('2', 'linear', 16, 5, False)
    """
    from surgery.survey import survey

    return survey(model, example, registry=registry).heads
