"""What the boxes and lines of a drawing say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from surgery.graph.graph import Spec
from surgery.pictures.blocks import Block

TIMES, TO = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

# Operations as people call them; any other by the name that aten has for it.
_WORDS = {
    "_native_batch_norm_legit": "batch norm",
    "_native_batch_norm_legit_no_training": "batch norm",
    "_safe_softmax": "softmax",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_softmax": "softmax",
    "_to_copy": "cast",
    "_unsafe_index": "index",
    "_unsafe_view": "reshape",
    "addmm": "linear",
    "bmm": "matrix product",
    "cat": "concatenate",
    "constant_pad_nd": "pad",
    "convolution": "convolution",
    "max_pool2d_with_indices": "max pool",
    "mean": "mean",
    "mm": "linear",
    "native_batch_norm": "batch norm",
    "native_dropout": "dropout",
    "native_group_norm": "group norm",
    "native_layer_norm": "layer norm",
    "unsqueeze": "reshape",
    "squeeze": "reshape",
    "view": "reshape",
}
# These move values about and change none: they are named where nothing else happens.
_MOVES = frozenset(
    {
        *("_to_copy", "_unsafe_view", "alias", "clone", "contiguous", "copy", "detach", "expand"),
        *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze"),
        *("surgery.updated", "t", "transpose", "unbind", "unsqueeze", "updated", "view"),
    }
)
_ACTIVATIONS = frozenset(
    {
        *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish"),
        *("_prelu_kernel", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "tanh"),
    }
)
_PRODUCTS = frozenset({"addmm", "mm", "bmm", "baddbmm", "linear", "addbmm"})
_NAMED = 3

# Kinds of blocks by what they do, in the order of the legend, and what each is called.
SORTS: Mapping[str, str] = {
    "conv": "convolution",
    "linear": "linear",
    "attention": "attention",
    "embedding": "embedding",
    "norm": "normalisation",
    "activation": "activation",
    "pool": "pooling",
    "block": "several layers",
    "other": "other operations",
}


def sort_of(block: Block) -> str:
    """Which of ``SORTS`` a block is of.

    Example:
        >>> sort_of(Block("module", "fc", ("view", "addmm")))
        'linear'
    """
    names = block.operations
    convolutions = sum("conv" in name for name in names)
    products = sum(name in _PRODUCTS for name in names)
    norms = any("norm" in name for name in names)
    attends = any("softmax" in name or "attention" in name for name in names)
    if attends and not norms and products + convolutions > 1:
        return "attention"
    if attends and not products and any("attention" in name for name in names):
        return "attention"
    if convolutions + products > 1:
        return "block"
    if convolutions or products:
        return "conv" if convolutions else "linear"
    if "embedding" in names or "_embedding_bag" in names:
        return "embedding"
    if norms:
        return "norm"
    if any("pool" in name for name in names) or (block.kind == "module" and "mean" in names):
        return "pool"
    return "activation" if any(name in _ACTIVATIONS for name in names) else "other"


def doing(block: Block) -> str:
    """What a block does, in a few words: ``concatenate, add``.

    Example:
        >>> doing(Block("operations", "", ("view", "cat", "add", "add")))
        'concatenate, add'
    """
    names = [name for name in block.operations if name not in _MOVES] or block.operations
    words = list(
        dict.fromkeys(_WORDS.get(name, name.strip("_").replace("_", " ")) for name in names)
    )
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def shape(spec: Spec) -> str:
    """A shape as people write it, with the dtype where it is not the usual one.

    Example:
        >>> import torch
        >>> shape(Spec((2, 7), torch.float32)).split(TIMES), shape(Spec((), torch.int64))
        (['2 ', ' 7'], 'scalar int64')
    """
    size = f" {TIMES} ".join(map(str, spec.shape)) or "scalar"
    dtype = str(spec.dtype).removeprefix("torch.")
    return size if dtype == "float32" else f"{size} {dtype}"


def shapes(specs: Iterable[Spec]) -> str:
    """Several shapes on one line, two of them at most.

    Example:
        >>> import torch
        >>> shapes([Spec((n,), torch.float32) for n in range(4)])
        '0, 1 and 2 more'
    """
    every = [shape(spec) for spec in specs]
    more = len(every) - 2
    return ", ".join(every[:2]) + (f" and {more} more" if more > 0 else "")


def count(number: int) -> str:
    """A number in three digits or so.

    Example:
        >>> [count(n) for n in (7, 9408, 23_454_912, 6_738_415_616)]
        ['7', '9,408', '23.5 M', '6.74 G']
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def series(first: str, last: str) -> str:
    """The addresses of the first and the last of several as one name.

    Example:
        >>> series("layers.0.mlp", "layers.11.mlp").split(TO)
        ['layers.0', '11.mlp']
    """
    named = []
    for one, other in zip(first.split("."), last.split("."), strict=False):
        digits = re.search(r"\d+$", other)
        named.append(one if one == other or digits is None else f"{one}{TO}{digits[0]}")
    return ".".join(named)


def shortened(text: str, most: int) -> str:
    """A text of no more characters than these, its end kept whole; cut at a dot, where one is near.

    Example:
        >>> shortened("backbone.body.layer4", 10), shortened("backbone.layer4_12", 10)
        ('…layer4', '…layer4_12')
    """
    if len(text) <= most:
        return text
    end = text[len(text) - most + 1 :]
    _, _, whole = end.partition(".")
    return "…" + (whole if 2 * len(whole) >= most else end)


def legible(text: str) -> str:
    r"""A text with what no XML may contain written out.

    Example:
        >>> legible("a" + chr(27) + "[31m")
        'a\\x1b[31m'
    """
    return "".join(
        each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text
    )
