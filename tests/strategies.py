"""Hypothesis strategies for models, and the registry of hostile ones.

Everything drawn is small, and its weights come from a drawn seed: the random state of torch stays
as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import tests.hostile_facts
import tests.hostile_layers
import tests.hostile_outputs
import tests.hostile_structures
import tests.hostile_trunks
from surgery.recipes import Expectation, Recipe, Step
from tests.hostile import REGISTRY, Hostile, images, leaves, random, sequences, tokens, vectors
from tests.hostile_layers import CosineHead, FunctionalHead, MatmulHead
from tests.hostile_outputs import Answer, Logits, Scores
from tests.hostile_trunks import Residual
from tests.renaming import NAMES, rename, renameable, renamings

HOSTILE: tuple[Hostile, ...] = tuple(REGISTRY.values())
HEADED = tuple(model for model in HOSTILE if model.heads)
HEADLESS = tuple(model for model in HOSTILE if not model.heads)

__all__ = [
    "HEADED",
    "HEADLESS",
    "HOSTILE",
    "NAMES",
    "Classifier",
    "Hostile",
    "Structure",
    "classifiers",
    "hostile_models",
    "leaves",
    "module_trees",
    "output_structures",
    "recipes",
    "rename",
    "renameable",
    "renamings",
]

SEEDS = st.integers(0, 2**16)


def hostile_models(*, headed: bool | None = None) -> st.SearchStrategy[Hostile]:
    """Any hostile model, or only those with (without) a head."""
    return st.sampled_from({None: HOSTILE, True: HEADED, False: HEADLESS}[headed])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# Each makes a fresh leaf; the number lets equal shapes turn up, which tying needs.
_LEAVES: tuple[Callable[[int], nn.Module], ...] = (
    lambda n: nn.Linear(n, n + 1),
    lambda n: nn.Linear(n + 1, n, bias=False),
    lambda n: nn.BatchNorm1d(n),
    lambda n: nn.BatchNorm2d(n, affine=False),
    lambda n: nn.BatchNorm1d(n, track_running_stats=False),
    lambda n: nn.LayerNorm(n),
    lambda n: nn.Embedding(n + 1, n),
    lambda n: nn.Conv2d(n, 2, 1),
    lambda n: nn.Conv1d(2, n, 3, dtype=torch.float64),
    lambda n: nn.Linear(n, n, dtype=torch.bfloat16),
    lambda n: nn.GRU(n, n),
    lambda n: nn.ParameterList([nn.Parameter(torch.randn(n)), nn.Parameter(torch.randn(n, n))]),
    lambda n: nn.ParameterDict({"w": nn.Parameter(torch.randn(n))}),
    lambda n: nn.Identity(),
    lambda n: Custom(n),
)


class Custom(nn.Module):
    """Parameters and buffers of unusual kinds, empty slots, a plain tensor, a fact."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.scalar = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.randn(0, size))
        self.turned = nn.Parameter(torch.randn(2, size).t())
        self.register_parameter("no_parameter", None)
        self.register_module("no_module", None)
        self.register_buffer("no_buffer", None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mask", torch.ones(size, dtype=torch.bool), persistent=False)
        self.plain = torch.randn(size)


class Named(nn.Module):
    """A module whose children are attributes of any name."""

    def __init__(self, children: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


@st.composite
def module_trees(draw: st.DrawFn, *, max_depth: int = 3) -> nn.Module:
    """A tree of modules to walk and count, not to run.

    Nested ``Sequential``, ``ModuleList``, ``ModuleDict`` and plain modules over layers of many
    kinds and dtypes; modules shared under several addresses (two names in one parent as well),
    parameters tied, parameters frozen, some parts in eval mode.
    """
    made: list[nn.Module] = []

    def tree(depth: int) -> nn.Module:
        if made and draw(st.integers(0, 5)) == 0:
            return draw(st.sampled_from(made))
        made.append(leaf() if depth == 0 or draw(st.booleans()) else container(depth))
        return made[-1]

    def leaf() -> nn.Module:
        return draw(st.sampled_from(_LEAVES))(draw(st.integers(1, 3)))

    def container(depth: int) -> nn.Module:
        names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
        children = {name: tree(depth - 1) for name in names}
        kind = draw(st.sampled_from(["sequential", "list", "dict", "named"]))
        if kind == "sequential":
            return nn.Sequential(*children.values())
        if kind == "list":
            return nn.ModuleList(children.values())
        return nn.ModuleDict(children) if kind == "dict" else Named(children)

    with _seeded(draw(SEEDS)):
        root = leaf() if draw(st.integers(0, 9)) == 0 else container(max_depth)
    _tie(draw, root)
    for parameter in root.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    for module in root.modules():
        module.training = draw(st.booleans())
    return root


def _tie(draw: st.DrawFn, root: nn.Module) -> None:
    slots = [
        (module, name, parameter)
        for module in root.modules()
        # A recurrent layer keeps a list of its weights beside the slots.
        if not isinstance(module, nn.RNNBase)
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    for module, name, parameter in slots:
        equal = [
            other
            for _, _, other in slots
            if other.shape == parameter.shape and other.dtype == parameter.dtype
        ]
        if len(equal) > 1 and draw(st.integers(0, 3)) == 0:
            setattr(module, name, draw(st.sampled_from(equal)))


@dataclass(frozen=True)
class Structure:
    """The form of an output: what holds what, with a tensor or a bystander in every leaf."""

    kind: Literal["tensor", "other", "list", "tuple", "dict", "named", "dataclass", "answer"]
    children: tuple[tuple[Any, Structure], ...] = ()
    other: Any = None

    def pack(self, make: Callable[[str], Tensor], path: str = "output") -> Any:
        """Build it, asking ``make(path)`` for every tensor."""
        if self.kind in {"tensor", "other"}:
            return make(path) if self.kind == "tensor" else self.other
        inner = {key: child.pack(make, path + self._step(key)) for key, child in self.children}
        if self.kind in {"list", "tuple"}:
            return (list if self.kind == "list" else tuple)(inner.values())
        if self.kind == "dict":
            return inner
        return {"named": Logits, "dataclass": Scores, "answer": Answer}[self.kind](**inner)

    def paths(self, path: str = "output") -> tuple[str, ...]:
        """The path of every tensor, in order."""
        if self.kind == "tensor":
            return (path,)
        return tuple(
            found for key, child in self.children for found in child.paths(path + self._step(key))
        )

    def _step(self, key: Any) -> str:
        return f".{key}" if self.kind in {"named", "dataclass", "answer"} else f"[{key!r}]"


_FIELDS = {
    "named": ("logits", "aux_logits"),
    "dataclass": ("logits", "loss"),
    "answer": ("loss", "logits", "hidden_states"),
}


@st.composite
def output_structures(draw: st.DrawFn, *, max_depth: int = 3) -> Structure:
    """The form of what a model may return, with at least one tensor in it."""

    def build(depth: int) -> Structure:
        kinds = ["tensor", "tensor", "other"]
        if depth:
            kinds += ["list", "tuple", "dict", "named", "dataclass", "answer"]
        kind: Any = draw(st.sampled_from(kinds))
        if kind == "tensor":
            return Structure("tensor")
        if kind == "other":
            return Structure("other", other=draw(st.sampled_from([None, 3, 0.5, "text", True])))
        keys: tuple[Any, ...] = _FIELDS.get(kind, ())
        if kind == "dict":
            names = st.sampled_from(["out", "aux", "it's", "a.b", 0, 1])
            keys = tuple(draw(st.lists(names, unique=True, max_size=3)))
        elif not keys:
            keys = tuple(range(draw(st.integers(0, 3))))
        return Structure(kind, tuple((key, build(depth - 1)) for key in keys))

    found = build(max_depth)
    return found if found.paths() else Structure("tuple", ((0, found), (1, Structure("tensor"))))


class Classifier(NamedTuple):
    """A model that runs, an example for it, and the truth about it."""

    model: nn.Module
    example: Any
    truth: Hostile


class First(nn.Module):
    """A recurrent layer's outputs without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Assembled(nn.Module):
    """Trunk, pooling, head and what lies behind it, under any names."""

    def __init__(
        self, parts: Mapping[str, nn.Module], pool: tuple[int, ...], structure: Structure
    ) -> None:
        super().__init__()
        self.pool, self.structure, self.order = pool, structure, tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        trunk, head, *behind = (self.get_submodule(name) for name in self.order)
        x = trunk(x)
        x = head(x.mean(self.pool) if self.pool else x)
        for layer in behind:
            x = layer(x)
        return self.structure.pack(lambda path: x)


class Shift(nn.Module):
    """One learned number for each class, along one axis."""

    def __init__(self, classes: int, dims_after: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(classes, *(1,) * dims_after))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Trunk(NamedTuple):
    """How to make a trunk, what goes in, how many dims lie behind its feature axis (-1: last)."""

    build: Callable[[int, int], nn.Module]
    example: Callable[[int], Callable[[], Any]]
    spatial: int
    channels_last: bool = False


def _stack(layer: Callable[[], nn.Module], depth: int) -> list[nn.Module]:
    return [part for _ in range(depth) for part in (layer(), nn.ReLU())]


def _transformer(width: int, depth: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


TRUNKS: Mapping[str, Trunk] = {
    "mlp": Trunk(
        lambda w, d: nn.Sequential(*_stack(lambda: nn.Linear(w, w), d), nn.BatchNorm1d(w)),
        vectors,
        0,
    ),
    "conv1d": Trunk(
        lambda w, d: nn.Sequential(nn.Conv1d(3, w, 3), *_stack(lambda: nn.Conv1d(w, w, 1), d)),
        lambda w: lambda: random(2, 3, 6),
        1,
    ),
    "conv2d": Trunk(
        lambda w, d: nn.Sequential(nn.Conv2d(3, w, 3), *_stack(lambda: nn.Conv2d(w, w, 1), d)),
        lambda w: images(size=6),
        2,
    ),
    "residual": Trunk(
        lambda w, d: nn.Sequential(
            nn.Conv2d(3, w, 3),
            *(
                Residual(nn.Sequential(nn.BatchNorm2d(w), *_stack(lambda: nn.Conv2d(w, w, 1), 1)))
                for _ in range(d)
            ),
        ),
        lambda w: images(size=6),
        2,
    ),
    "transformer": Trunk(_transformer, sequences, 1, channels_last=True),
    "rnn": Trunk(
        lambda w, d: nn.Sequential(nn.Embedding(11, w), First(nn.LSTM(w, w, d, batch_first=True))),
        lambda w: tokens(),
        1,
        channels_last=True,
    ),
}

# How to make a head of (features, classes), and where inside it the layer is that owns the weight.
HEADS: Mapping[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "linear": (nn.Linear, ""),
    "no bias": (lambda f, c: nn.Linear(f, c, bias=False), ""),
    "deep": (lambda f, c: nn.Sequential(nn.Linear(f, 6), nn.Tanh(), nn.Linear(6, c)), "2"),
    "matmul": (MatmulHead, ""),
    "functional": (FunctionalHead, ""),
    "cosine": (CosineHead, ""),
    "normed": (lambda f, c: nn.utils.parametrizations.weight_norm(nn.Linear(f, c)), ""),
}


@st.composite
def classifiers(draw: st.DrawFn) -> Classifier:
    """A small classifier with one head, and the truth about it.

    Drawn are the trunk (perceptron, convolutions, residual, transformer, recurrent), its width
    and depth, the head's layer, the number of classes (which may equal any other size), pooling
    or none, what lies behind the head, the form of the output, all names, how deep the model sits
    in wrappers, whether an attribute tells the number, and what is frozen.
    """
    trunk = TRUNKS[draw(st.sampled_from(sorted(TRUNKS)))]
    width, depth = 2 * draw(st.integers(1, 4)), draw(st.integers(1, 2))
    classes = draw(st.integers(1, 9))
    dense = bool(trunk.spatial) and draw(st.booleans())
    spatial = trunk.spatial if dense and not trunk.channels_last else 0
    if spatial:
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[spatial]
        make, inside = (lambda f, c: conv(f, c, 1)), ""
    else:
        make, inside = HEADS[draw(st.sampled_from(sorted(HEADS)))]
    pool: tuple[int, ...] = ()
    if trunk.spatial and not dense:
        pool = (1,) if trunk.channels_last else tuple(range(2, 2 + trunk.spatial))
    axis = 2 if dense and trunk.channels_last else 1
    behind = draw(st.sampled_from(["nothing", "log_softmax", "shift", "dropout"]))
    names = draw(st.permutations(NAMES))[: 3 + draw(st.integers(0, 2))]
    structure = draw(output_structures(max_depth=2))
    fact = draw(st.sampled_from([None, "num_classes", "config"]))
    frozen, seed = draw(st.sampled_from(["nothing", "trunk", "all"])), draw(SEEDS)
    wrappers = names[3:]

    def build(classes: int = classes) -> nn.Module:
        parts = {names[0]: trunk.build(width, depth), names[1]: make(width, classes)}
        if behind != "nothing":
            parts[names[2]] = {
                "log_softmax": lambda: nn.LogSoftmax(axis),
                "shift": lambda: Shift(classes, spatial),
                "dropout": lambda: nn.Dropout(0.0),
            }[behind]()
        inner: nn.Module = Assembled(parts, pool, structure)
        if fact == "num_classes":
            inner.num_classes = classes  # type: ignore[assignment]
        elif fact == "config":
            inner.config = tests.hostile_facts.Labels(classes)  # type: ignore[assignment]
        if frozen != "nothing":
            (inner if frozen == "all" else parts[names[0]]).requires_grad_(False)
        for name in wrappers:
            inner = tests.hostile.named(**{name: inner})
        return inner

    inside_wrappers = "".join(f"{name}." for name in reversed(wrappers))
    follows = [f"{inside_wrappers}{names[2]}.shift"] if behind == "shift" else []
    if fact:
        follows.append(inside_wrappers + {"config": "config.num_labels"}.get(fact, fact))
    truth = Hostile(
        name="drawn",
        build=build,
        example=trunk.example(width),
        heads={f"{inside_wrappers}{names[1]}" + (f".{inside}" if inside else ""): classes},
        corroborated=fact is not None,
        outputs=dict.fromkeys(structure.paths(), axis),
        follows=tuple(follows),
        note="drawn by Hypothesis",
    )
    return Classifier(truth.make(seed=seed), truth.example(), truth)


# Names that YAML might take for something else, and some that it would not.
_RECIPE_TEXTS = st.one_of(
    st.sampled_from(
        ["no", "1", "1e5", "0x1", "1:30", "~", "null", "- a", "a: b", "#", "é", "\t", "*a"]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8),
)
_RECIPE_PATTERNS = st.one_of(_RECIPE_TEXTS, st.lists(_RECIPE_TEXTS, max_size=3))
_RECIPE_STEPS: Mapping[str, st.SearchStrategy[dict[str, Any]]] = {
    "replace_head": st.fixed_dictionaries(
        {"num_classes": st.integers(1, 2**40)},
        optional={
            "classes": st.lists(_RECIPE_TEXTS, min_size=1, max_size=3),
            "keep": st.just("all")
            | st.dictionaries(st.integers(0, 9) | _RECIPE_TEXTS, _RECIPE_TEXTS),
            "hidden": st.lists(st.integers(1, 9), max_size=3),
            "dropout": st.floats(0, 1, exclude_max=True),
            "heads": st.dictionaries(_RECIPE_TEXTS, st.integers(1, 9), max_size=2),
            "trainable": st.sampled_from([True, False, None]),
        },
    ),
    "freeze": st.fixed_dictionaries(
        {}, optional={"patterns": _RECIPE_PATTERNS, "except_": _RECIPE_PATTERNS}
    ),
    "load_weights": st.fixed_dictionaries(
        {"source": _RECIPE_TEXTS},
        optional={
            "rename": st.dictionaries(_RECIPE_TEXTS, _RECIPE_TEXTS | st.none(), max_size=2),
            "min_coverage": st.floats(0, 1),
        },
    ),
    "transplant": st.fixed_dictionaries(
        {"donor": _RECIPE_TEXTS | st.fixed_dictionaries({"target": _RECIPE_TEXTS})},
        optional={"freeze": st.booleans()},
    ),
    "remove_head": st.just({}),
}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A recipe that breaks no rule; its names and files stand for nothing."""

    def entry() -> Step | Expectation:
        if draw(st.booleans()):
            return Expectation(draw(st.sampled_from(["parameters > 3", 'heads == {"fc": 5}'])))
        verb = draw(st.sampled_from(sorted(_RECIPE_STEPS)))
        return Step(verb, draw(_RECIPE_STEPS[verb]))

    options = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | _RECIPE_TEXTS
        | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(_RECIPE_TEXTS, inner, max_size=3)
        ),
        max_leaves=6,
    )
    return Recipe(
        draw(_RECIPE_TEXTS),
        tuple(entry() for _ in range(draw(st.integers(0, 4)))),
        weights=draw(st.none() | _RECIPE_TEXTS),
        num_classes=draw(st.none() | st.integers(1, 9)),
        options=draw(st.dictionaries(_RECIPE_TEXTS, options, max_size=3)),
        example=draw(
            st.sampled_from([None, [1, 3, 8, 8], {"ids": {"shape": [2], "dtype": "int64"}}])
        ),
        seed=draw(st.integers(0, 2**63 - 1)),
        output=draw(st.none() | _RECIPE_TEXTS),
    )
