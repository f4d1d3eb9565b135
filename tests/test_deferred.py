"""Constructing without filling, and filling: the same model in the end, drawn only where asked."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tests.constructors as constructors
from surgery.deferred import Deferred, construct
from surgery.deferred.log import Log
from surgery.errors import AddressError, ArgumentError, UnsupportedModelError
from tests.constructors import EAGER, EXACT, Constructor, Made

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SCRIPTED = torch.jit.script(nn.Linear(2, 2))
ALL = {**EXACT, **EAGER}


class Executed(TorchDispatchMode):
    """Which operations run on real tensors: random ones, and bytes that any of them writes."""

    def __init__(self) -> None:
        super().__init__()
        self.random: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        real = [x for x in made if isinstance(x, torch.Tensor) and not x.is_meta]
        if not real or func.is_view or func._schema.name in ("aten::empty", "aten::empty_strided"):
            return result
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.append(str(func))
        self.bytes += sum(x.numel() * x.element_size() for x in real)
        return result


def facts(model: nn.Module) -> dict[str, tuple[object, ...]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        # A parametrised layer has a class of its own.
        **{n: (type(m).__name__, len(m._modules), m.training) for n, m in model.named_modules()},
        **{
            f"{name} ": (type(t), t.shape, t.dtype, t.stride(), t.requires_grad)
            for name, t in tensors.items()
        },
    }


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    assert facts(one) == facts(other)
    for kind in ("named_parameters", "named_buffers"):
        for (name, a), (_, b) in zip(getattr(one, kind)(), getattr(other, kind)(), strict=True):
            assert a.device == b.device, name
            assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ALL)
def test_filled_it_is_what_the_constructor_makes(name: str):
    torch.manual_seed(3)
    slow = ALL[name]()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    deferred = construct(ALL[name])
    deferred.fill()
    assert deferred.pending == ()
    assert_equal(slow, deferred.model)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", EXACT)
def test_constructing_draws_nothing_and_leaves_parameters_on_meta(name: str):
    slow = EXACT[name]()
    before = torch.get_rng_state()
    with Executed() as executed:
        deferred = construct(EXACT[name])
    assert executed.random == []
    assert torch.equal(torch.get_rng_state(), before)
    assert deferred.notes == ()
    assert facts(deferred.model) == facts(slow)
    assert all(parameter.is_meta for parameter in deferred.model.parameters())
    for (address, a), b in zip(slow.named_buffers(), deferred.model.buffers(), strict=True):
        # Those of random numbers wait as well.
        assert b.is_meta == (address in deferred.pending)
        assert b.is_meta or torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(EAGER.keys() - {"own_generator"}))
def test_what_cannot_wait_is_said(name: str):
    assert construct(EAGER[name]).notes


def test_tensors_that_hang_elsewhere_have_their_values():
    model = construct(constructors.buffers).model
    assert model.plain.tolist() == [1, 1, 1]
    assert model.listed[0].tolist() == [1, 1]
    assert model.listed[1][0].tolist() == [4, 4]
    assert torch.equal(model.copied, model.position)


def test_ties_stay_ties_and_recurrent_layers_keep_their_lists():
    deferred = construct(constructors.tied)
    model = deferred.model
    assert deferred.pending == ("0.weight", "1.bias")
    deferred.fill(["1.weight"])
    assert model[0].weight is model[1].weight
    assert not model[0].weight.is_meta
    layer = construct(nn.LSTM, 3, 4)
    layer.fill()
    assert all(
        a is b for a, b in zip(layer.model._flat_weights, layer.model.parameters(), strict=True)
    )
    assert layer.model(torch.zeros(2, 3))[0].shape == (2, 4)


def test_attributes_and_identity_of_parameters_stay():
    made: list[nn.Parameter] = []

    def fill(module: nn.Module) -> None:
        module.weight = nn.Parameter(torch.zeros(3))
        module.weight.no_decay = True
        made.append(module.weight)

    deferred = construct(Made, fill)
    deferred.fill()
    assert deferred.model.weight is made[0]
    assert made[0].no_decay is True
    (made[0] * 2).sum().backward()
    assert made[0].grad.tolist() == [2, 2, 2]


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(EXACT)))
def test_filling_some_touches_nothing_else(data: st.DataObject, name: str):
    deferred = construct(EXACT[name])
    some = data.draw(st.lists(st.sampled_from(deferred.pending), unique=True))
    held = {**dict(deferred.model.named_parameters()), **dict(deferred.model.named_buffers())}
    real = {key: t.clone() for key, t in held.items() if not t.is_meta}
    before = deferred.pending
    deferred.fill(some)
    assert deferred.pending == tuple(key for key in before if key not in some)
    now = {**dict(deferred.model.named_parameters()), **dict(deferred.model.named_buffers())}
    assert all(now[key] is tensor for key, tensor in held.items())
    assert all(torch.equal(held[key], tensor) for key, tensor in real.items())
    values = {key: held[key].clone() for key in some}
    deferred.fill()
    assert all(torch.equal(held[key], value) for key, value in values.items())
    assert not any(tensor.is_meta for tensor in held.values())


def test_only_what_is_filled_is_drawn():
    deferred = construct(constructors.layers)
    before = torch.get_rng_state()
    deferred.fill(["1.weight", "1.bias", "7.weight"])
    assert torch.equal(torch.get_rng_state(), before), "ones, zeros and a constant"
    with Executed() as executed:
        deferred.fill(["2.bias"])
    assert executed.random == ["aten.uniform_.default"]


def test_one_draw_filled_in_two_steps_is_one_draw():
    deferred = construct(constructors.copies)
    deferred.fill(["b.weight"])
    state = torch.get_rng_state()
    deferred.fill(["a.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    deferred.fill()
    model = deferred.model
    assert torch.equal(model.a.weight, model.b.weight)
    assert torch.equal(model.a.weight, model.c.weight)
    assert model.a.bias.tolist() == [0, 0, 0]
    assert model.b.bias.abs().sum() > 0


def test_a_generator_of_the_callers_is_drawn_from_and_no_other():
    torch.manual_seed(11)
    slow = constructors.layers()
    deferred, generator = construct(constructors.layers), torch.Generator().manual_seed(11)
    before = torch.get_rng_state()
    deferred.fill(generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(slow, deferred.model)
    again = construct(constructors.layers)
    again.fill(generator=generator)
    assert not torch.equal(again.model[2].weight, slow[2].weight), "it has moved on"


def test_a_generator_of_another_device_is_refused():
    deferred = construct(nn.Linear, 2, 2)
    with pytest.raises(ArgumentError, match="on the CPU"):
        deferred.fill(generator="seed")
    assert deferred.pending == ("weight", "bias")


def test_values_are_put_without_a_copy():
    deferred = construct(nn.Linear, 3, 2)
    weight, bias = torch.rand(2, 3), torch.rand(2, dtype=torch.float64)
    deferred.put("weight", weight)
    assert deferred.model.weight.data_ptr() == weight.data_ptr()
    assert deferred.model.weight.requires_grad
    assert deferred.pending == ("bias",)
    deferred.put("bias", bias)
    assert torch.equal(deferred.model.bias, bias.float())
    channels = construct(lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    channels.put("weight", torch.rand(4, 3, 3, 3))
    assert channels.model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["weigth", "0.weight", ""])
def test_a_name_that_was_not_constructed_is_refused(name: str):
    deferred = construct(nn.Linear, 3, 2)
    for refused in (lambda: deferred.fill(["weight", name]), lambda: deferred.put(name, None)):
        with pytest.raises(AddressError, match="no tensor of this name"):
            refused()
    assert deferred.pending == ("weight", "bias")


def test_a_value_of_another_shape_is_refused():
    deferred = construct(nn.Linear, 3, 2)
    with pytest.raises(ArgumentError, match="another shape"):
        deferred.put("weight", torch.zeros(3, 2))
    deferred.fill(["bias"])
    with pytest.raises(AddressError, match="has its values already"):
        deferred.put("bias", torch.zeros(2))


def test_what_is_filled_is_left_as_it_is():
    deferred = construct(nn.Linear, 3, 2)
    deferred.put("weight", torch.ones(2, 3))
    deferred.fill(["weight", "bias"])
    assert deferred.model.weight.sum() == 6


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LazyLinear(3),
        lambda: nn.Sequential(SCRIPTED),
        lambda: [nn.Linear(2, 2)],
    ],
)
def test_what_is_no_ordinary_model_is_refused(build: Constructor):
    with pytest.raises(UnsupportedModelError):
        construct(build)


def test_an_error_of_the_constructor_comes_out_as_it_is():
    def wrong() -> nn.Module:
        layer = nn.Linear(3, 3)
        layer.weight.data.copy_(torch.zeros(4, 4))
        return layer

    before, initialiser = torch.get_rng_state(), nn.init._no_grad_trunc_normal_
    with pytest.raises(RuntimeError, match="must match the size"):
        construct(wrong)
    assert nn.init._no_grad_trunc_normal_ is initialiser
    assert torch.equal(torch.get_rng_state(), before)


def test_what_its_constructor_puts_on_meta_stays_there():
    deferred = construct(nn.Linear, 3, 2, device="meta")
    assert deferred.pending == ()
    assert "on meta" in deferred.notes[0]


def test_a_failure_while_filling_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    deferred = construct(constructors.layers)
    before, state = deferred.pending, torch.get_rng_state()
    calls: Iterator[int] = iter(range(10))

    run = Log._run

    def failing(self, call, made):
        if next(calls) == 9:
            raise MemoryError("no more")
        run(self, call, made)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "_run", failing)
        with pytest.raises(MemoryError):
            deferred.fill()
    assert deferred.pending == before
    assert torch.equal(torch.get_rng_state(), state)
    deferred.fill()
    torch.set_rng_state(state)
    assert_equal(constructors.layers(), deferred.model)


def test_other_threads_initialise_as_ever_meanwhile():
    inside, done = threading.Event(), threading.Event()
    found: list[torch.Tensor] = []

    def other() -> None:
        inside.wait(30)
        found.append(nn.init.trunc_normal_(torch.zeros(50)))
        done.set()

    def fill(module: nn.Module) -> None:
        inside.set()
        assert done.wait(30)
        module.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(50)))

    original = nn.init._no_grad_trunc_normal_
    thread = threading.Thread(target=other)
    thread.start()
    deferred = construct(Made, fill)
    thread.join()
    assert found[0].std() > 0
    assert deferred.model.weight.is_meta
    assert nn.init._no_grad_trunc_normal_ is original


def test_one_construction_inside_another():
    inner: list[Deferred] = []

    def outer() -> nn.Module:
        inner.append(construct(nn.Linear, 3, 3))
        inner[0].fill()
        return nn.Sequential(inner[0].model, nn.Linear(2, 2))

    deferred = construct(outer)
    deferred.fill()
    assert all(torch.isfinite(p).all() and not p.is_meta for p in deferred.model.parameters())
    assert deferred.model[0].weight.std() > 0


def kolmogorov(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two empirical distributions, in units of its 0.1 % quantile."""
    one, other = one.flatten().sort()[0], other.flatten().sort()[0]
    both = torch.cat([one, other]).sort()[0]
    shares = [torch.searchsorted(x, both, right=True) / len(x) for x in (one, other)]
    limit = 1.95 * ((len(one) + len(other)) / (len(one) * len(other))) ** 0.5
    return float((shares[0] - shares[1]).abs().max()) / limit


def test_out_of_order_the_distribution_stays_and_no_number_is_used_twice():
    def fill(module: nn.Module) -> None:
        module.a = nn.utils.weight_norm(nn.Linear(60, 60))
        module.b = nn.Linear(60, 60)
        nn.init.normal_(module.b.weight, std=0.3)

    with pytest.warns(FutureWarning):
        slow = Made(fill)
    with pytest.warns(FutureWarning):
        deferred = construct(Made, fill)
    deferred.fill()
    model = deferred.model
    assert any("random numbers were drawn" in note for note in deferred.notes)
    for one, other in zip(slow.parameters(), model.parameters(), strict=True):
        assert kolmogorov(one.detach(), other.detach()) < 1
    assert kolmogorov(model.a.weight_v.detach(), model.b.weight.detach()) > 1
    assert torch.allclose(model.a.weight, _normed(model.a))


def _normed(layer: nn.Module) -> torch.Tensor:
    return torch._weight_norm(layer.weight_v, layer.weight_g, 0)
