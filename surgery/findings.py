"""What is said of a head: where it is, what it makes, and the evidence that it is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from surgery.families.family import HeadRole
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
        axis: the class axis; -1 where a head's scores are none.
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
    """A layer (or a bare parameter, buffer or plain tensor) that makes a class output.

    Attributes:
        address: the module that owns the weight, or the parameter itself where it hangs on a
            module that does other things too.
        addresses: all addresses of that module or parameter.
        kind: ``linear``, ``conv1d`` to ``conv3d``, ``conv_transpose1d`` to ``3d``, ``bilinear``,
            ``embedding`` (used as output layer), ``custom`` (a layer of a class unknown to
            torch), ``parameter`` (a bare tensor), ``computed`` (a weight that several layers
            make), or ``packed`` (a quantised layer, whose weight is no tensor).
        in_features: size of the features each class is computed from.
        num_classes: how many classes it makes.
        factor: how many numbers it makes for each class: 4 for the boxes of a detector, the
            number of anchors where it makes the classes of each.
        role: ``main``, ``aux`` (makes nothing in eval mode where another head does, or is named
            so), or a family's word: ``coupled`` for a layer that follows other heads, ``choice``
            and ``span`` for scores of something else than classes.
        follows: for a coupled layer, the heads whose classes it has.
        background: the name of class 0 where it stands for "no object", else empty.
        outputs: the outputs it makes.
        weights: for each parameter of its weight, all addresses; for each buffer or plain tensor,
            where it is made of those.
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
    factor: int = 1
    follows: tuple[str, ...] = ()
    background: str = ""

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
        branches: why several of them may be branches of a trunk; empty where nothing says so.
        remedy: what to do where there is none, if anything better is known than to add a head.
    """

    ending: str
    branches: str
    remedy: str

    def __new__(
        cls,
        heads: tuple[Head, ...] = (),
        ending: str = "",
        branches: str = "",
        remedy: str = "",
    ) -> Heads:
        """Make the tuple."""
        made = super().__new__(cls, heads)
        made.ending = ending
        made.branches = branches
        made.remedy = remedy
        return made

    def __getnewargs__(self) -> tuple[tuple[Head, ...], str, str, str]:
        return tuple(self), self.ending, self.branches, self.remedy

    def __repr__(self) -> str:
        shown = f", branches={self.branches!r}" if self.branches else ""
        return f"Heads({tuple(self)!r}, ending={self.ending!r}{shown})"
