"""Every kind of tensor is counted once, wherever it hides; what cannot be counted is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

import surgery
from surgery import tree
from surgery.errors import UnsupportedModelError
from tests.test_parameters import parameters_of

# Parameters of every kind.


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


@pytest.mark.parametrize(
    ("make", "elements", "size"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), 3 + 12 + 3, 72),
        (lambda: old_weight_norm(nn.Linear(4, 3)), 3 + 12 + 3, 72),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), 12 + 3, 60 + 7 * 4),
        (lambda: nn.Linear(4, 3, dtype=torch.complex64), 15, 120),
        (lambda: nn.Linear(4, 3, dtype=torch.bfloat16), 15, 30),
    ],
)
def test_layers_of_every_kind(make: Any, elements: int, size: int):
    model = make()
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model) == elements
    assert audit.bytes == size


@pytest.mark.parametrize(
    ("tensor", "elements", "size"),
    [
        (torch.zeros(3, 4, dtype=torch.int8), 12, 12),
        (torch.zeros(0, 4), 0, 0),
        (torch.zeros(()), 1, 4),
        (torch.eye(3).to_sparse(), 9, 3 * 4 + 6 * 8),
        (TwoTensor(torch.zeros(2, 3), torch.zeros(2, 3)), 6, 48),
    ],
    ids=["int8", "empty", "scalar", "sparse", "made of two"],
)
def test_tensors_of_every_kind(tensor: torch.Tensor, elements: int, size: int):
    model = nn.Linear(1, 1, bias=False)
    model.weight = nn.Parameter(tensor, requires_grad=False)
    model.register_buffer("same", tensor.clone())
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model) == audit.buffers == elements
    assert audit.bytes == 2 * size
    assert audit.frozen == elements


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
def test_compressed_sparse_tensors(layout: torch.layout):
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(3).to_sparse(layout=layout))
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model) == 9
    assert audit.bytes == 3 * 4 + 3 * 8 + 4 * 8


def test_a_model_without_parameters():
    audit = surgery.audit(nn.ReLU())
    assert (audit.total, audit.trainable_ratio, audit.bytes, audit.bytes_by) == (0, 0.0, 0, {})


def test_bytes_by_dtype_and_device():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"), nn.BatchNorm1d(4))
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert surgery.audit(model).bytes_by == {
        (torch.float32, cpu): 80 + 64,
        (torch.float32, meta): 80,
        (torch.int64, cpu): 8,
    }
    assert surgery.audit(model).at("1").bytes_by == {(torch.float32, meta): 80}


# Buffers, sharing, storage.


def test_buffers_in_the_state_dict_or_not_each_once():
    model = nn.Sequential(nn.Module(), nn.Module())
    shared = torch.zeros(3)
    model[0].register_buffer("here", shared, persistent=False)
    model[1].register_buffer("there", shared, persistent=True)
    model[0].register_buffer("fleeting", torch.zeros(5), persistent=False)
    audit = surgery.audit(model)
    assert (audit.buffers, audit.persistent_buffers) == (8, 3)
    assert [entry.addresses for entry in audit.shared] == [("0.here", "1.there")]


def test_a_parameter_registered_as_a_buffer_too_is_a_parameter():
    model = nn.Sequential(nn.Module(), nn.Linear(2, 2, bias=False))
    model[0].register_buffer("copy", model[1].weight)
    audit = surgery.audit(model)
    assert (audit.total, audit.buffers) == (parameters_of(model), 0) == (4, 0)
    assert [set(entry.addresses) for entry in audit.shared] == [{"0.copy", "1.weight"}]


def test_views_of_one_storage_are_noted():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    block = torch.zeros(2, 2, 2)
    model[0].weight, model[1].weight = nn.Parameter(block[0]), nn.Parameter(block[1])
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model)
    assert not audit.shared
    (group,) = audit.shared_storage
    assert (group.addresses, group.bytes) == (("0.weight", "1.weight"), 32)
    assert surgery.audit(copy.deepcopy(model[2])).shared_storage == ()


def test_one_layer_under_two_names_in_one_parent():
    layer = nn.Linear(2, 2)
    audit = surgery.audit(nn.ModuleDict({"a": layer, "b": layer}))
    assert audit.total == 6
    assert audit.at("b").addresses == ("a", "b")
    assert [entry.addresses for entry in audit.shared] == [
        ("a.weight", "b.weight"),
        ("a.bias", "b.bias"),
    ]


def test_a_module_that_contains_itself():
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("itself", model)
    audit = surgery.audit(model)
    assert audit.total == parameters_of(model) == 6
    assert [row.addresses for row in audit.rows] == [("",), ("0",)]


def test_sharing_at_every_level_stays_cheap():
    """Thirty levels, each holding the next twice: 2**30 addresses, 31 modules."""
    model: nn.Module = nn.Linear(2, 2)
    for _ in range(30):
        model = nn.ModuleDict({"a": model, "b": model})
    audit = surgery.audit(model)
    assert (audit.total, audit.bytes) == (6, 24)


# Quantised modules.


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.lstm = nn.LSTM(4, 3)
        self.cell = nn.GRUCell(4, 3)
        self.fc = nn.Linear(3, 2)


@pytest.fixture(params=torch.backends.quantized.supported_engines)
def quantised(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear, nn.LSTM, nn.GRUCell}
        yield torch.ao.quantization.quantize_dynamic(Recurrent(), kinds, dtype=torch.qint8)
    torch.backends.quantized.engine = before


def test_packed_weights_are_counted_apart(quantised: nn.Module):
    audit = surgery.audit(quantised)
    assert audit.total == parameters_of(quantised) == 40
    assert audit.packed == parameters_of(Recurrent()) - 40
    assert audit.at("fc").packed == 8
    assert audit.at("fc").bytes == 6 * 1 + 2 * 4
    assert audit.at("cell").packed == parameters_of(nn.GRUCell(4, 3))
    assert audit.at("lstm").packed == parameters_of(nn.LSTM(4, 3))
    # A quantised cell has biases beside those it packed, and does not use them.
    (spot,) = audit.blind_spots
    assert spot.endswith(": cell.bias_ih, cell.bias_hh")


def test_a_packed_layer_used_twice_counts_once(quantised: nn.Module):
    audit = surgery.audit(nn.ModuleList([quantised.fc, quantised.fc]))
    assert audit.packed == 8
    assert audit.at("1").addresses == ("0", "1")


def test_statically_quantised_layers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conv = torch.ao.nn.quantized.Conv2d(3, 4, 3)
        bag = torch.ao.nn.quantized.EmbeddingBag(10, 8)
    assert (surgery.audit(conv).total, surgery.audit(conv).packed) == (0, 3 * 4 * 9 + 4)
    assert (surgery.audit(bag).total, surgery.audit(bag).packed) == (0, 80)


def test_plain_tensors_are_a_blind_spot():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert surgery.audit(model).blind_spots == ()
    model[1].memory = torch.zeros(3)
    (spot,) = surgery.audit(model).blind_spots
    assert "1.memory" in spot
    for number in range(100):
        setattr(model, f"memory{number}", torch.zeros(1))
    assert surgery.audit(model).blind_spots[0].endswith("and 93 more")


# Wrappers, and what is refused.


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_wrappers_are_read_through(process_group: None):
    bare = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    expected = surgery.audit(bare)
    assert surgery.audit(nn.DataParallel(bare)) == expected
    assert surgery.audit(nn.parallel.DistributedDataParallel(bare)) == expected
    assert surgery.audit(torch.compile(bare)) == expected
    assert surgery.audit(nn.DataParallel(torch.compile(bare))) == expected
    inner = nn.Sequential(torch.compile(bare[0]), bare[1])
    assert [row.address for row in surgery.audit(inner).rows] == ["", "0", "1"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.LazyLinear(3)),
        lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False)),
        lambda: torch.jit.script(nn.Linear(2, 2)),
        lambda: nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))),
        lambda: torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)),
        lambda: torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)).module(),
        lambda: nn.Linear,
        lambda: None,
        lambda: {"weight": torch.zeros(2)},
    ],
)
def test_what_cannot_be_counted_is_refused_as_everywhere(make: Any):
    model = make()
    with pytest.raises(UnsupportedModelError) as ours:
        surgery.audit(model)
    with pytest.raises(UnsupportedModelError) as everywhere:
        tree.check_model(model)
    assert str(ours.value) == str(everywhere.value)


def test_names_that_are_no_addresses_are_refused():
    model = nn.Module()
    model._modules["a.b"] = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError):
        surgery.audit(model)


def test_a_module_that_was_never_initialised_is_refused():
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            self.size = 3

    with pytest.raises(UnsupportedModelError, match="super"):
        surgery.audit(Forgetful())
