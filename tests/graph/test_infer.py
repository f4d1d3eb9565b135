"""Examples are inferred: every one that comes back really runs, and nothing else is touched."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from surgery.errors import ExampleError
from surgery.graph.example import Example
from surgery.graph.infer import infer_example
from surgery.graph.structure import tensors
from tests import strategies
from tests.graph.inferred import (
    SMALL,
    Attempts,
    Digits,
    RecurrentText,
    UsersAndItems,
    infer,
    run_for_real,
    shapes,
)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_inferred_runs_for_real_in_both_modes(name: str) -> None:
    build, expected = SMALL[name]
    model = build()
    example = infer(model)
    run_for_real(model, example, train=False)
    run_for_real(model, example, train=True)
    if expected is not None:
        assert shapes(example) == expected


@pytest.mark.parametrize("name", SMALL)
def test_each_size_is_the_batch_or_came_from_the_model_and_integers_are_real(name: str) -> None:
    model = SMALL[name][0]()
    example = infer(model)
    for _, tensor in tensors({"args": example.args, **example.kwargs}):
        floating = tensor.is_floating_point() or tensor.is_complex()
        assert tensor.is_meta == floating
        assert 2 in tensor.shape or tensor.dim() == 1
        assert not tensor.requires_grad


def state_of(model: nn.Module) -> list[Any]:
    state: list[Any] = []
    for name, module in model.named_modules():
        state.append((name, id(module), module.training, sorted(vars(module))))
        state.append([list(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks)])
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state.append((name, id(tensor), tensor.data_ptr(), tensor._version, tensor.grad is None))
    return state


@pytest.mark.parametrize("name", ["digits", "lstm text", "picture and table", "volume"])
def test_inferring_touches_nothing_and_draws_nothing(name: str) -> None:
    model = SMALL[name][0]()
    hooks = nn.modules.module
    before = (state_of(model), torch.get_rng_state().tolist(), random.getstate())
    installed = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    infer(model)
    assert (state_of(model), torch.get_rng_state().tolist(), random.getstate()) == before
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == installed


def test_inferring_takes_its_watch_away_also_where_an_attempt_raises() -> None:
    def broken(example: Example, train: bool) -> Exception | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_example(nn.Linear(3, 2), broken)
    assert not nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("name", ["attention text", "dict", "table and picture", "series"])
def test_the_same_model_gives_the_same_example_after_the_same_attempts(name: str) -> None:
    first, second = (Attempts(SMALL[name][0]()) for _ in range(2))
    examples = [infer_example(attempts.model, attempts) for attempts in (first, second)]
    assert shapes(examples[0]) == shapes(examples[1])
    assert first.count == second.count


def test_an_ordinary_model_takes_one_pass_in_each_mode() -> None:
    attempts = Attempts(torchvision.models.resnet18())
    infer_example(attempts.model, attempts)
    assert attempts.count == 2


def test_a_size_is_steered_to_and_not_stumbled_on() -> None:
    side = 171  # in no list of usual sizes
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * (side - 2) ** 2, 3))
    attempts = Attempts(model)
    assert shapes(infer_example(model, attempts)) == [(2, 3, side, side)]
    assert attempts.count < 25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_input_has_the_dtype_of_the_layer_that_takes_it(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(dtype)
    assert infer(model).args[0].dtype == dtype


def test_ids_are_inside_the_table_of_their_own_argument() -> None:
    users, items = infer(UsersAndItems()).args
    assert 5 <= int(users.max()) < 100
    assert int(items.max()) < 5


def test_ids_are_inside_every_table_that_gets_them() -> None:
    class TwoTables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Embedding(100, 8), nn.Embedding(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.large(x) + self.small(x)

    [ids] = infer(TwoTables()).args
    assert ids.shape == (2, 16)
    assert int(ids.max()) == 4


def test_a_model_on_meta_and_one_inside_a_wrapper_are_inferred_alike() -> None:
    plain = shapes(infer(Digits(320)))
    assert shapes(infer(Digits(320).to("meta"))) == plain
    assert shapes(infer(nn.DataParallel(Digits(320)))) == plain


def test_inference_mode_leaves_no_inference_tensors() -> None:
    with torch.inference_mode():
        example = infer(RecurrentText(nn.LSTM, True))
    assert not example.args[0].is_inference()


def test_a_model_that_runs_in_eval_mode_only_gets_its_eval_example() -> None:
    class EvalOnly(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("training needs targets")
            return super().forward(x)

    attempts = Attempts(EvalOnly(5, 3))
    example = infer_example(attempts.model, attempts)
    assert shapes(example) == [(2, 5)]
    assert example.train is None
    assert attempts.count < 40


def test_train_mode_gets_an_example_of_its_own_where_none_suits_both() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            side = 32 if self.training else 224
            if x.shape[-1] != side:
                raise ValueError(f"expected {side} pixels and got {x.shape[-1]}")
            return self.conv(x)

    example = infer(Growing())
    assert shapes(example) == [(2, 1, 224, 224)]
    assert example.train is not None
    assert shapes(example.train) == [(2, 1, 32, 32)]


class WantsObjects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, graph: Any, schema: Any) -> Tensor:
        return self.fc(graph.nodes(schema.kind))


def test_what_cannot_be_inferred_is_an_error_that_shows_how_to_pass_it() -> None:
    attempts = Attempts(WantsObjects())
    with pytest.raises(ExampleError) as caught:
        infer_example(attempts.model, attempts)
    message = str(caught.value)
    assert "WantsObjects" in message
    assert "forward(graph: Any, schema: Any)" in message.replace("'", "")
    assert "has no attribute 'nodes'" in message
    assert "example=(torch.zeros(2, 4), torch.zeros(2, 4))" in message
    assert attempts.count <= 400


def test_the_code_in_the_error_is_an_example_once_the_model_takes_it() -> None:
    class Refuses(nn.Linear):
        def forward(self, x: Tensor, *, gate: Tensor) -> Tensor:
            raise RuntimeError("not today")

    with pytest.raises(ExampleError) as caught:
        infer(Refuses(4, 3))
    code = str(caught.value.fix).partition("example=")[2].removesuffix(")")
    example = Example.of(eval(code, {"torch": torch}))
    assert set(example.kwargs) == {"x", "gate"}


def test_a_large_model_that_nothing_fits_is_given_up_early() -> None:
    class Deep(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    attempts = Attempts(Deep(*(nn.Linear(4, 4) for _ in range(400))))
    with pytest.raises(ExampleError):
        infer_example(attempts.model, attempts)
    assert attempts.count <= 60


@pytest.mark.parametrize("case", strategies.HOSTILE, ids=lambda case: case.name)
def test_every_hostile_model_is_inferred_without_its_example(case: Any) -> None:
    model = case.build()
    run_for_real(model, infer(model), train=False)
