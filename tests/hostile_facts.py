"""Hostile models by what they say of themselves: attributes and configurations with a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tests.hostile import Headed, hostile


class Labels:
    """A configuration whose number of labels follows from their names."""

    def __init__(self, count: int) -> None:
        self.id2label = {i: f"LABEL_{i}" for i in range(count)}
        self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.__init__(count)  # type: ignore[misc]


def _headed(classes: int, **facts: Any) -> nn.Module:
    model = Headed(classes)
    for name, value in facts.items():
        setattr(model, name, value)
    return model


@dataclass
class Configuration:
    """Settings with and without a number of classes."""

    hidden_size: int = 8
    num_labels: int | None = None
    num_classes: int | None = None


@hostile({"fc": 8}, "num_classes; = features", corroborated=True, follows=("num_classes",))
def num_classes_on_the_root(classes: int = 8) -> nn.Module:
    return _headed(classes, num_classes=classes)


@hostile({"fc": 5}, "config.num_classes", corroborated=True, follows=("config.num_classes",))
def num_classes_in_config(classes: int = 5) -> nn.Module:
    return _headed(classes, config=Configuration(num_classes=classes))


@hostile(
    {"fc": 2}, "config['num_classes']; = batch", corroborated=True, follows=("config.num_classes",)
)
def num_classes_in_dict(classes: int = 2) -> nn.Module:
    return _headed(classes, config={"depth": 8, "num_classes": classes})


@hostile(
    {"fc": 5},
    "num_labels in the configuration and on the model",
    corroborated=True,
    follows=("config.num_labels", "num_labels"),
)
def num_labels_twice(classes: int = 5) -> nn.Module:
    return _headed(classes, config=Configuration(num_labels=classes), num_labels=classes)


@hostile({"fc": 5}, "a configuration that knows nothing of classes")
def config_without_labels(classes: int = 5) -> nn.Module:
    return _headed(classes, config=Configuration())


@hostile({"fc": 5}, "num_classes of another number: it corroborates nothing and must not follow")
def num_classes_of_another_number(classes: int = 5) -> nn.Module:
    return _headed(classes, num_classes=1000)


@hostile(
    {"net.fc": 5},
    "num_classes on the network inside a wrapper that normalises",
    corroborated=True,
    follows=("net.num_classes",),
)
class NumClassesInside(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(8), _headed(classes, num_classes=classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))
