"""Where each operation runs: on meta, for real, and which models that lets run on meta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from surgery.graph import execute, remembered
from surgery.graph.example import Example
from surgery.graph.graph import Graph
from surgery.graph.operators import Call, behaviour
from surgery.graph.record import record_graph


def on_meta(model: nn.Module, *args: Any, **options: Any) -> Graph:
    return record_graph(model, Example(args), backends=("meta",), **options)


def behind(graph: Graph) -> set[str]:
    """Addresses of every parameter that the first output depends on."""
    leaf = graph.leaves[0]
    assert leaf.source is not None
    needed, found = {leaf.source.node}, set()
    for node in reversed(graph.nodes):
        if node.index in needed:
            found |= {address for one in node.parameters for address in one}
            needed |= {ref.node for ref in node.inputs}
    return found


class Layer(nn.Module):
    """A linear layer and a function that uses it."""

    def __init__(self, run: Callable[[nn.Linear, torch.Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.run = run

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self.fc, x)


def into_preallocated(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(x), 3)
    out[:] = fc(x)
    return out


def into_a_column(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(x), 6)
    out[:, ::2] = fc(x)
    return out.view(len(x), 3, 2)[:, :, 0]


def into_a_row_at_a_time(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(x), 3)
    for place, row in enumerate(x):
        out[place].copy_(fc(row))
    return out


def through_out(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(x), 3, device=x.device)
    with torch.no_grad():
        torch.addmm(fc.bias, x, fc.weight.t(), out=out)
    return out


def through_index_put(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    keep = torch.tensor([True, False] * (len(x) // 2))
    out = torch.zeros(len(x), 3)
    out[keep] = fc(x)[keep]
    return out


def masked(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    keep = torch.arange(len(x), device=x.device) % 3 == 0
    assert int(keep.sum()) == 2
    return fc(x[keep])


def a_mask_of_ones_asked(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(len(x), device=x.device)
    assert mask.sum() == mask.numel()
    out = torch.zeros(len(x), 3, device=x.device)
    out += mask[:, None]
    out[:] = fc(x * mask[:, None])
    return out


def constant_on_device(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    places = torch.tensor([0, 2], device=x.device)
    return fc(x)[:, places.tolist()]


def new_tensor(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    places = x.new_tensor([1, 2], dtype=torch.long)
    return fc(x)[:, int(places[0]) :]


def to_cpu(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return fc(x.cpu()).to("cpu")


def created_on_cpu(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return fc(x + torch.ones(4, device="cpu")) * torch.tensor(2.0, device="cpu")


def from_numpy(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return fc(x * torch.from_numpy(np.ones(4, dtype=np.float32)))


def in_inference_mode(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return fc(x.reshape(-1, 2, 4)).flatten(0, 1)


def without_gradients(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        features = fc.weight.sigmoid()
    return nn.functional.linear(x, features, fc.bias)


def its_own_gradient(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(fc(x).square().sum(), x, create_graph=True)
    return fc(gradient)


def checkpointed(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(fc, x, use_reentrant=False)


def checkpointed_reentrant(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(fc, x, use_reentrant=True)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def custom_function(fc: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return Doubled.apply(fc(x))


RUNS = (
    into_preallocated,
    into_a_column,
    into_a_row_at_a_time,
    through_out,
    through_index_put,
    masked,
    a_mask_of_ones_asked,
    constant_on_device,
    new_tensor,
    to_cpu,
    created_on_cpu,
    from_numpy,
    in_inference_mode,
    without_gradients,
    its_own_gradient,
    checkpointed,
    checkpointed_reentrant,
    custom_function,
)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_runs_on_meta_with_the_head_behind_its_output(run: Callable[..., Any], train: bool) -> None:
    model, x = Layer(run).train(train), torch.randn(6, 4)
    graph = on_meta(model, x)
    expected = model(x)
    assert graph.leaves[0].spec.shape == tuple(expected.shape)
    assert graph.leaves[0].spec.dtype == expected.dtype
    assert behind(graph) == {"fc.weight", "fc.bias"}
    assert on_meta(model.to("meta"), x) == graph
    model = Layer(run).train(train)
    model.requires_grad_(False)
    assert behind(on_meta(model, x)) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("run", [*RUNS[:4], constant_on_device, its_own_gradient])
def test_runs_for_real_with_the_head_behind_its_output(run: Callable[..., Any]) -> None:
    model, x = Layer(run), torch.randn(6, 4)
    graph = record_graph(model, Example((x,)), backends=("real",))
    assert graph.leaves[0].spec.shape == tuple(model(x).shape)
    assert behind(graph) == {"fc.weight", "fc.bias"}
    assert graph.backend == "real"


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], packed: bool) -> None:
        super().__init__()
        self.rnn = kind(4, 5, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(10, 3)
        self.packed = packed

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if not self.packed:
            return self.fc(self.rnn(x)[0][:, -1])
        ragged = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.rnn(ragged)[0], batch_first=True)
        return self.fc(output[torch.arange(len(x)), lengths - 1])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_on_meta(kind: type[nn.RNNBase], packed: bool) -> None:
    model = Recurrent(kind, packed)
    graph = on_meta(model, torch.randn(3, 7, 4), torch.tensor([7, 2, 5]))
    assert graph.leaves[0].spec.shape == (3, 3)
    assert behind(graph) == set(dict(model.named_parameters()))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.encoder(x, src_key_padding_mask=ids == 0).mean(1))


@pytest.mark.parametrize("train", [False, True])
def test_an_encoder_with_a_padding_mask_runs_on_meta(train: bool) -> None:
    model, ids = Encoder(), torch.tensor([[1, 2, 3, 0, 0], [1, 2, 3, 4, 0]])
    graph = on_meta(model, torch.randn(2, 5, 8), ids, train=train)
    assert graph.leaves[0].spec.shape == (2, 3)
    assert behind(graph) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("train", [False, True])
def test_transformer_and_attention_run_on_meta(train: bool) -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    inputs = (torch.randn(2, 5, 8), torch.randn(2, 4, 8))
    graph = on_meta(model, *inputs, train=train)
    assert graph.leaves[0].spec.shape == (2, 4, 8)
    assert behind(graph) == set(dict(model.named_parameters()))
    # It compares a floating-point mask with a causal one, value by value.
    mask = model.generate_square_subsequent_mask(4)
    graph = record_graph(model, Example(inputs, {"tgt_mask": mask}), train=train)
    assert (graph.backend, graph.leaves[0].spec.shape) == ("real", (2, 4, 8))
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    graph = on_meta(attention, x, x, x, train=train)
    assert [leaf.spec.shape for leaf in graph.leaves] == [(2, 5, 8), (2, 5, 5)]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128]
)
def test_parameters_of_every_dtype_run_on_meta(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.Linear(4, 3, dtype=dtype))
    graph = on_meta(model, torch.randn(2, 4, dtype=dtype))
    assert graph.leaves[0].spec.dtype == dtype
    assert behind(graph) == set(dict(model.named_parameters()))


class ReadsItsBuffer(nn.Module):
    """Branches on its own integers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(size, dtype=torch.int8))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table[0] += 1
        return self.fc(x) if self.table[0].item() == 2 else x


def test_small_integer_state_has_values_and_large_has_none(untouched: Any) -> None:
    small, large = ReadsItsBuffer(100_000), ReadsItsBuffer(100_001)
    x = torch.randn(2, 4)
    with untouched(small, x):
        assert on_meta(small, x).leaves[0].spec.shape == (2, 3)
    with untouched(large, x):
        assert record_graph(large, Example((x,))).backend == "real"


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_model_gives_the_graph_of_the_bare_one(wrap: Callable[..., Any]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), torch.randn(2, 4)
    plain = on_meta(model, x)
    assert on_meta(wrap(model), x) == plain
    assert on_meta(nn.Sequential(wrap(model[0]), model[1]), x) == plain
    model[0].compile()
    assert on_meta(model, x) == plain
    assert model[0]._compiled_call_impl is not None


def test_a_kernel_is_asked_once_for_one_sort_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_layouts", {})
    x = torch.empty(3, 4, device="meta")

    def run(func: Any, *args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in args if torch.is_tensor(arg)]
        return remembered.run(Call(func, behaviour(func), args, kwargs, given))

    add = torch.ops.aten.add.Tensor
    first, second = run(add, x, x), run(add, x, x)
    assert first is not second
    assert len(remembered._layouts) == 1
    ints = torch.empty(3, dtype=torch.long, device="meta")
    # Equal as dictionary keys, and promoted differently.
    assert [run(add, ints, number).dtype for number in (1, 1.0, True)] == [
        torch.int64,
        torch.float32,
        torch.int64,
    ]
    for func, args in (
        (torch.ops.aten.native_layer_norm.default, (x, [4], None, None, 1e-5)),
        (torch.ops.aten.split_with_sizes_copy.default, (x, [1, 3], 1)),
        (torch.ops.aten.sum.dim_IntList, (x.t(), [0], True)),
        (torch.ops.aten.clone.default, (x.t(),)),
        (torch.ops.aten.clone.default, (x[:, 1:],)),
    ):
        for _ in range(2):
            assert described(run(func, *args)) == described(func(*args))
    monkeypatch.setattr(remembered, "LIMIT", 1)
    run(add, x, x.t()[:, :1].t())
    assert len(remembered._layouts) == 1


def described(result: Any) -> list[Any]:
    items = result if isinstance(result, list | tuple) else [result]
    return [(type(result)), *((one.shape, one.stride(), one.dtype) for one in items)]


def test_a_shape_that_needs_too_many_values_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "REAL_FALLBACK_LIMIT", 3)
    assert record_graph(Layer(masked), Example((torch.randn(6, 4),))).backend == "real"
