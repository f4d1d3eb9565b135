"""Where the samples are in features: layers that take the sequence first put them behind it."""

from __future__ import annotations

from torch import nn

from surgery import tree
from surgery.errors import PlanError
from surgery.graph.axes import follow
from surgery.graph.graph import Graph, Leaf, Ref
from surgery.graph.walk import ancestors
from surgery.operations.attach_roles import Roles

# torch's own layers that take [places, samples, channels] unless they are told otherwise.
_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)


def check_samples(model: nn.Module, roles: Roles, leaf: Leaf) -> None:
    """Refuse features that have the samples along their second axis.

    Pooled over their places they would be pooled over the samples.

    Args:
        model: the model, out of its wrappers.
        roles: of the axes in its recording.
        leaf: the output that holds the features.

    Raises:
        PlanError: a layer works along the first axis, and the features come out as it made them;
            or what is along the first axis is summed over, as attention does with words.
    """
    graph = roles.graph
    crossing = roles.crosses(leaf) if len(leaf.spec.shape) > 2 else None
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
    if crossing is not None:
        node = graph.nodes[crossing]
        raise PlanError(
            "what is along the first axis of the inputs is no samples: the model sums over it",
            where=leaf.path,
            expected="[samples, places, channels]",
            found=f"{leaf.spec}, and a product in {node.module or '(the model)'} that sums over "
            "its first axis, as attention does over words",
            fix="a model that takes and returns the samples first: x.transpose(0, 1) in its "
            "forward, before and after the layers that take the sequence first",
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
