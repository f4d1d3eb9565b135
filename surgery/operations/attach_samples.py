"""Where the samples are in features: layers that take the sequence first put them behind it."""

from __future__ import annotations

from torch import nn

from surgery import tree
from surgery.errors import PlanError
from surgery.graph.axes import follow
from surgery.graph.graph import Graph, Leaf, Ref
from surgery.graph.walk import ancestors

# torch's own layers that take [places, samples, channels] unless they are told otherwise.
_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)


def check_samples(model: nn.Module, graph: Graph, leaf: Leaf) -> None:
    """Refuse features that have the samples along their second axis.

    Pooled over their places they would be pooled over the samples.

    Args:
        model: the model, out of its wrappers.
        graph: its recording.
        leaf: the output that holds the features.

    Raises:
        PlanError: a layer works along the first axis, and the features come out as it made them.
    """
    for address, module in tree.walk(model):
        if not isinstance(module, _SEQUENTIAL) or module.batch_first:
            continue
        if _samples_of(graph, address, leaf) == 1:
            raise PlanError(
                "the samples of these features are along their second axis",
                where=leaf.path,
                expected="[samples, places, channels]",
                found=f"{leaf.spec}, made along its first axis by {address or '(the model)'}, "
                f"{type(module).__name__}(batch_first=False)",
                fix=f"torch.nn.{type(module).__name__}(..., batch_first=True), in a model that "
                "takes and returns the samples first",
            )


def _samples_of(graph: Graph, address: str, leaf: Leaf) -> int | None:
    """The axis of an output that a sequence-first layer's samples are on, if they reach it."""
    if leaf.source is None:
        return None
    leading = ancestors(graph, leaf.source.node) | {leaf.source.node}
    for index in sorted(leading, reverse=True):
        node = graph.nodes[index]
        inside = not address or f"{node.module}.".startswith(f"{address}.")
        if node.role == "operation" and inside and len(node.outputs[0].shape) == 3:
            return follow(graph, Ref(index), 1).axes.get(leaf.source)
    return None
