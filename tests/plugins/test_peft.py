"""Models inside peft: adapters stay in place, or the operation is refused with the remedy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from surgery_plugins.peft import WRAPPINGS
from surgery_plugins.transformers import FAMILY
from torch import Tensor, nn

import surgery
from surgery.errors import WrappedModelError
from surgery.families.registry import Registry

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

KNOWN = Registry.of(FAMILY, wrappings=WRAPPINGS)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TOKENS = {"vocab_size": 50, "pad_token_id": 0, "num_labels": 4, **SIZES}
INSIDE = "base_model.model."


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Peft asks transformers under a name that transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=Warning)
        yield


def vit() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=4, **SIZES)
    return transformers.ViTForImageClassification(config)


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TOKENS))


def llama() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**TOKENS))


def language() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TOKENS))


def adapted(model: nn.Module, kind: str = "LoraConfig", **options: object) -> nn.Module:
    return peft.get_peft_model(model, getattr(peft, kind)(**options))


MADE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit": (
        lambda: adapted(vit(), target_modules=["q_proj"], modules_to_save=["classifier"]),
        "classifier.modules_to_save.default",
    ),
    "vit-frozen-head": (lambda: adapted(vit(), target_modules=["q_proj"]), "classifier"),
    "bert": (
        lambda: adapted(bert(), task_type="SEQ_CLS", target_modules=["query", "value"]),
        "classifier.modules_to_save.default",
    ),
    "llama": (
        lambda: adapted(llama(), task_type="SEQ_CLS", target_modules=["q_proj"]),
        "score.modules_to_save.default",
    ),
    "ia3": (
        lambda: adapted(
            bert(), "IA3Config", task_type="SEQ_CLS", target_modules=["key"], feedforward_modules=[]
        ),
        "classifier.modules_to_save.default",
    ),
    "language": (lambda: adapted(language(), target_modules=["q_proj"]), "lm_head"),
}


def inputs(model: nn.Module) -> dict[str, Tensor]:
    if "vit" in str(type(model.base_model.model)).lower():
        return {"pixel_values": torch.ones(2, 3, 32, 32)}
    return {"input_ids": torch.arange(10).reshape(2, 5) + 1}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("name", MADE)
def test_the_head_is_found_and_replaced_and_every_adapter_stays(name: str) -> None:
    make, head = MADE[name]
    model = make()
    before, modules = state(model), dict(model.named_modules())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = surgery.find_heads(model, registry=KNOWN)
    assert [found.address for found in heads] == [INSIDE + head]
    assert heads[0].corroborated

    outcome = surgery.replace_head(model, 7, registry=KNOWN)
    assert model(**inputs(model)).logits.shape[-1] == 7
    now = dict(model.named_modules())
    assert now.keys() == modules.keys()
    assert all(now[name] is modules[name] for name in modules)
    after = model.state_dict()
    changed = {name for name in before if after[name].shape != before[name].shape}
    assert changed == set(outcome.new)
    assert all(torch.equal(after[name], before[name]) for name in before if name not in changed)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == learning | set(outcome.new)

    assert outcome.undo() is model
    assert same(state(model), before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning


@pytest.mark.parametrize("name", ["vit", "bert", "llama", "ia3"])
def test_training_after_it_moves_adapters_and_head_alone(name: str) -> None:
    model = MADE[name][0]()
    surgery.replace_head(model, 7, registry=KNOWN)
    before = state(model)
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # Its steps do not depend on how small a gradient is.
    optimizer = torch.optim.Adam([parameter for _, parameter in learning], lr=0.01)
    labels = torch.tensor([6, 5])
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs(model), labels=labels).loss.backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    # The first of the two matrices moves from the second step on.
    assert moved == {name for name, _ in learning}


def test_an_audit_tells_what_trains_from_what_is_frozen() -> None:
    model = MADE["bert"][0]()
    audit = surgery.audit(model)
    trainable, total = model.get_nb_trainable_parameters()
    assert (audit.trainable, audit.total) == (trainable, total)
    kept = audit.at(f"{INSIDE}classifier.modules_to_save")
    assert (kept.trainable, kept.frozen) == (4 * 16 + 4, 0)
    original = audit.at(f"{INSIDE}classifier.original_module")
    assert (original.trainable, original.frozen) == (0, 4 * 16 + 4)


def two_adapters() -> nn.Module:
    model = MADE["vit"][0]()
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
    model.add_adapter("b", config)
    model.set_adapter("b")
    return model


def test_the_copy_of_the_active_adapter_counts_and_the_others_are_named() -> None:
    model = two_adapters()
    active = f"{INSIDE}classifier.modules_to_save.b"
    assert [head.address for head in surgery.find_heads(model, registry=KNOWN)] == [active]
    outcome = surgery.replace_head(model, 7, registry=KNOWN)
    (note,) = (note for note in outcome.plan.notes if "other copies" in note)
    others = [f"{INSIDE}classifier.original_module", f"{INSIDE}classifier.modules_to_save.default"]
    assert ", ".join(others) in note
    # The note says so because of this.
    with model.disable_adapter():
        assert model(**inputs(model)).logits.shape == (2, 4)
    layers = {other: nn.Linear(16, 7) for other in others}
    surgery.replace(model, layers, registry=KNOWN)
    with model.disable_adapter():
        assert model(**inputs(model)).logits.shape == (2, 7)
    model.set_adapter("default")
    assert model(**inputs(model)).logits.shape == (2, 7)


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
def test_merging_afterwards_takes_the_new_head_along(merged: bool) -> None:
    model = MADE["bert"][0]()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.eval()
    if merged:
        model.merge_adapter()
    surgery.replace_head(model, 7, registry=KNOWN)
    logits = model(**inputs(model)).logits
    if merged:
        model.unmerge_adapter()
        torch.testing.assert_close(model(**inputs(model)).logits, logits)
    given = inputs(model)
    plain = model.merge_and_unload()
    assert plain.config.num_labels == 7
    torch.testing.assert_close(plain(**given).logits, logits)


@pytest.mark.parametrize("make", [vit, language], ids=["vit", "language"])
def test_adapters_on_the_head_itself_are_refused_and_the_remedy_works(
    make: Callable[[], nn.Module],
) -> None:
    head = "classifier" if make is vit else "lm_head"
    model = adapted(make(), target_modules=["q_proj", head])
    before, given = state(model), inputs(model)
    with pytest.raises(WrappedModelError, match="adapters") as refused:
        surgery.replace_head(model, 7, registry=KNOWN)
    assert f"{INSIDE}{head}" in str(refused.value.found)
    assert same(state(model), before)
    merge = str(refused.value.fix).split(",")[0]
    scope = {"model": model}
    exec(merge, scope)
    bare = scope["model"]
    surgery.replace_head(bare, 7, registry=KNOWN)
    again = adapted(bare, target_modules=["q_proj"], modules_to_save=[head])
    assert again(**given).logits.shape[-1] == 7


def test_freezing_and_unfreezing_leave_the_adapters_where_they_are() -> None:
    model = MADE["vit"][0]()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    frozen = surgery.freeze(model, except_="heads", registry=KNOWN)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == [
        f"{INSIDE}classifier.modules_to_save.default.{n}" for n in ("weight", "bias")
    ]
    surgery.unfreeze(model, "*lora_*")
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)
    surgery.freeze(model, "*lora_*").undo()
    surgery.unfreeze(model, "*").undo()
    model = MADE["vit"][0]()
    surgery.freeze(model, except_="heads", registry=KNOWN).undo()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert frozen.plan.steps


def test_a_changed_model_is_saved_and_restored_over_its_adapters(tmp_path: Path) -> None:
    model = MADE["vit"][0]()
    surgery.replace_head(model, 7, registry=KNOWN)
    surgery.save(model, tmp_path / "adapted.pt")
    again = MADE["vit"][0]()
    surgery.restore(again, tmp_path / "adapted.pt", registry=KNOWN)
    assert same(state(again), state(model))
    given = inputs(model)
    torch.testing.assert_close(again.eval()(**given).logits, model.eval()(**given).logits)


def test_weights_load_into_adapters_and_base() -> None:
    model, source = MADE["bert"][0](), MADE["bert"][0]()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    before = state(model)
    outcome = surgery.load_weights(model, source.state_dict(), registry=KNOWN)
    assert same(state(model), state(source))
    outcome.undo()
    assert same(state(model), before)


def test_the_optimizer_follows_through_the_wrapper() -> None:
    model = copy.deepcopy(MADE["vit"][0]())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**inputs(model), labels=torch.tensor([1, 2])).loss.backward()
    optimizer.step()
    outcome = surgery.replace_head(model, 7, keep={0: 0, 1: 1}, registry=KNOWN)
    assert {moved.state for moved in surgery.follow(optimizer, outcome).moved} == {"carried"}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
