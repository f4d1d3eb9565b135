"""Record one forward pass as a graph, and leave no trace in the model."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from surgery import tree
from surgery.errors import ExampleError, RecordError, SurgeryError
from surgery.graph.example import Example
from surgery.graph.execute import (
    Execution,
    MetaExecution,
    RealConstants,
    RealExecution,
    ValueNeededError,
)
from surgery.graph.graph import Graph, Leaf
from surgery.graph.kept import kept
from surgery.graph.quiet import quiet
from surgery.graph.recorder import Recorder, spec_of
from surgery.graph.skeleton import Backend, Skeleton, build_skeleton, is_floating
from surgery.graph.structure import replace_tensors, tensors

REAL_SPOT = (
    "the forward pass needs values, so it ran on real tensors: "
    "where values choose a branch, only the branch of one input was seen"
)
HOOK_SPOT = "forward hooks ran as well; what they do outside the model is not undone"


@dataclass(frozen=True)
class _Attempt:
    """One way to run the forward pass, from the quickest to the most patient."""

    backend: Backend
    patient: bool

    def modes(self) -> contextlib.ExitStack:
        """The modes to run in: a patient attempt has gradients and keeps constants real."""
        stack = contextlib.ExitStack()
        if self.patient:
            stack.enter_context(torch.enable_grad())
            if self.backend == "meta":
                stack.enter_context(RealConstants())
        return stack


def record_graph(
    model: nn.Module,
    example: Example,
    *,
    train: bool | None = None,
    edit: Callable[[Skeleton], None] | None = None,
    operations: bool = True,
    backends: tuple[Backend, ...] = ("meta", "real"),
) -> Graph:
    """Record one forward pass of a model, on ``meta`` where that is possible.

    Args:
        model: any module; wrappers are passed through. It is never run itself: a skeleton is.
        example: the arguments of forward.
        train: the mode to record in; None for the modes the modules are in.
        edit: called with the skeleton before it runs, to try out a change.
        operations: False to learn the outputs' shapes alone, which is quicker.
        backends: what to try, in order.

    Returns:
        The graph. Equal for equal models, in every process.

    Raises:
        UnsupportedModelError: the model is lazy, scripted or exported.
        ExampleError: forward does not take this example.
        RecordError: forward raised something else, on real tensors too.
    """
    tree.check_model(model)
    example = example.in_mode(bool(tree.unwrap(model).training if train is None else train))
    failed: Exception | None = None
    for attempt in [
        _Attempt(backend, patient) for backend in backends for patient in (False, True)
    ]:
        try:
            return _run(model, example, train, edit, operations, attempt)
        except SurgeryError:
            raise
        except Exception as error:
            # What a later attempt says of a value it lacks is less telling than the first error.
            failed = error if failed is None or needs_values(failed) else failed
            if _is_misfit(error):
                break
    raise _explained(model, example, train, failed) from failed


def needs_values(error: BaseException | None) -> bool:
    """Whether an exception says that ``meta`` tensors have no values."""
    while error is not None:
        if isinstance(error, ValueNeededError | NotImplementedError):
            return True
        text = str(error).lower()
        if "meta" in text or "does not require grad" in text or "data-dependent" in text:
            return True
        error = error.__cause__
    return False


def _is_misfit(error: Exception) -> bool:
    """Whether an exception says that shapes or arguments do not fit: values will not help."""
    if needs_values(error):
        return False
    text = str(error)
    return (isinstance(error, TypeError) and "argument" in text) or any(
        words in text
        for words in (
            "shapes cannot be multiplied",
            "must have same reduction dim",
            "Invalid channel dimensions",
            "Given groups=",
            "must match the size",
            "size mismatch",
            "Kernel size can't be greater",
            "Expected more than 1 value per channel",
        )
    )


def _run(
    model: nn.Module,
    example: Example,
    train: bool | None,
    edit: Callable[[Skeleton], None] | None,
    operations: bool,
    attempt: _Attempt,
) -> Graph:
    with quiet():
        skeleton = build_skeleton(model, attempt.backend)
        if example.prepare is not None:
            example.prepare(skeleton.model)
        if train is not None:
            skeleton.model.train(train)
        if edit is not None:
            edit(skeleton)
            skeleton.renew_stand_ins()
        inputs = _inputs(example, skeleton, attempt.backend)
        recorder = _recorder(skeleton, inputs, attempt.backend) if operations else None
        execution = _execution(skeleton, recorder, attempt)
        watching = recorder.watching(skeleton.modules) if recorder else contextlib.nullcontext()
        untouched = kept(skeleton.originals)
        with untouched, contextlib.closing(execution), attempt.modes(), watching, execution:
            output = inputs.call(skeleton.model)
            outputs = list(_plain(tensors(output)))
    leaves = tuple(
        Leaf(path, spec_of(tensor), recorder.known(tensor) if recorder else None)
        for path, tensor in outputs
    )
    return Graph(
        nodes=tuple(recorder.nodes) if recorder else (),
        leaves=leaves,
        training=skeleton.model.training,
        backend=attempt.backend,
        blind_spots=tuple(
            dict.fromkeys(_blind_spots(model, skeleton, example, leaves, attempt, operations))
        ),
    )


def _recorder(skeleton: Skeleton, inputs: Example, backend: Backend) -> Recorder:
    recorder = Recorder(skeleton, keep=backend == "meta")
    for path, tensor in _plain(tensors(inputs.args, "args")):
        recorder.add_source("input", (path,), tensor)
    for path, tensor in _plain(tensors(dict(inputs.kwargs), "kwargs")):
        recorder.add_source("input", (path,), tensor)
    return recorder


def _plain(found: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors made of others, nested ones, as these: operations run on them alone."""
    for path, tensor in found:
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            inner = ((f"{path}.{name.lstrip('_')}", getattr(tensor, name)) for name in names)
            yield from _plain(inner)
        else:
            yield path, tensor


def _execution(skeleton: Skeleton, recorder: Recorder | None, attempt: _Attempt) -> Execution:
    if attempt.backend == "meta":
        return MetaExecution(skeleton.stand_ins, recorder, constants=attempt.patient)
    return RealExecution(skeleton.stand_ins, recorder)


def _inputs(example: Example, skeleton: Skeleton, backend: Backend) -> Example:
    """The example's own twin: floats on meta (or real copies), integers always real copies."""
    device = _device(skeleton) if backend == "real" else torch.device("cpu")

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        if backend == "meta" and is_floating(tensor.dtype):
            new = tensor.detach().to("meta") if not tensor.is_meta else torch.empty_like(tensor)
        elif tensor.is_meta:
            filled = torch.randn if is_floating(tensor.dtype) else torch.zeros
            new = filled(tensor.shape, dtype=tensor.dtype, device=device)
        else:
            new = tensor.detach().to(device if backend == "real" else "cpu", copy=True)
        return new.requires_grad_(tensor.requires_grad)

    return Example(
        tuple(replace_tensors(value, twin) for value in example.args),
        {name: replace_tensors(value, twin) for name, value in example.kwargs.items()},
        forward=example.forward,
    )


def _device(skeleton: Skeleton) -> torch.device:
    for entry in skeleton.sources.values():
        if entry.kind == "parameter":
            if entry.tensor.is_meta:
                raise RecordError(
                    "the forward pass needs values, and the model's parameters have none",
                    where=entry.address,
                    expected="parameters on a real device",
                    found="meta",
                    fix="model.to_empty(device='cpu') and load weights, then record",
                )
            return entry.tensor.device
    return torch.device("cpu")


def _blind_spots(
    model: nn.Module,
    skeleton: Skeleton,
    example: Example,
    leaves: tuple[Leaf, ...],
    attempt: _Attempt,
    operations: bool,
) -> Iterator[str]:
    if example.forward is not None:
        yield (
            "forward itself was not recorded, since it depends on values: "
            f"{_name(example.forward)} ran the layers in its place"
        )
    if attempt.backend == "real":
        yield REAL_SPOT
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        yield HOOK_SPOT
    yield from skeleton.shared
    for leaf in leaves if operations else ():
        if leaf.source is None:
            yield f"{leaf.path} does not come from any recorded operation"


def _explained(
    model: nn.Module, example: Example, train: bool | None, error: Exception | None
) -> RecordError:
    mode = {None: "its own modes", True: "train mode", False: "eval mode"}[train]
    given = ", ".join(
        f"{path} {spec_of(tensor)}"
        for path, tensor in tensors({"args": example.args, **example.kwargs}, "example")
    )
    inner = tree.unwrap(model)
    kind = ExampleError if error is not None and _is_misfit(error) else RecordError
    run = inner.forward if example.forward is None else example.forward
    name = f"{type(inner).__name__}.forward" if example.forward is None else _name(run)
    return kind(
        f"{name} raised {type(error).__name__} in {mode}: {error}",
        where=f"forward{_signature(run)}",
        expected="a forward pass that runs on the example",
        found=given or "no tensors in the example",
        fix="pass arguments that model(...) takes: example=torch.randn(2, 3, 224, 224), "
        "example=(first, second) or example={'input_ids': ids}"
        if example.forward is None
        else "let the parts of the model fit each other: model(*arguments) shows whether they do",
    )


def _name(function: Callable[..., object]) -> str:
    place = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}.{place}".lstrip(".")


def _signature(function: Callable[..., object]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
