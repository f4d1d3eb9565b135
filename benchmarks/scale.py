"""Language models at their published sizes, on `meta`: what surgery costs in time and memory.

python -m benchmarks.scale
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import THREADS, duration, machine, markdown, publish

WHAT = """Models built from transformers' configurations with `torch.device("meta")`: nothing is
downloaded, the sizes are typed into this file. `find_heads` and `replace_head(model, 7)` with
`undo()` are verified operations in eval and train mode, as everywhere. Each model is measured in a
process of its own, after a small model of the same class has been through the same, so that imports
and caches count for nobody. Times are processor time of the one thread without Python's
garbage collector; memory is by how much the
peak of the process grew in that step (0 means: it fitted into what had been used before).

Figures: Llama 3.1 from "The Llama 3 Herd of Models", table 3 (vocabulary 128,256); DeepSeek-V3 from
its technical report, section 4.2; Mixtral from the model cards of 8x7B and 8x22B Instruct; Qwen3
from "Qwen3 Technical Report", table 2, and the cards; Llama 3.2 1B from its card. The published
parameters are those of the cards; DeepSeek's leave out the module for multi-token prediction, which
transformers does not build. A head tied to the embedding is refused, and is untied first, as the
refusal says."""

LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
MIXTRAL = {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN = {"vocab_size": 151_936, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128}
WIDE = {"hidden_size": 16_384, "intermediate_size": 53_248, "num_attention_heads": 128}
NARROW = {"hidden_size": 1024, "intermediate_size": 3328, "num_attention_heads": 128}


@dataclass(frozen=True)
class Size:
    """One model: its configuration's class, what is set, and the parameters that are published."""

    config: str
    published: float | None
    options: Mapping[str, Any] = field(default_factory=dict)


def llama(layers: int, width: Mapping[str, int], published: float | None, **more: Any) -> Size:
    return Size("Llama", published, {**LLAMA, "num_hidden_layers": layers, **width, **more})


def sized(hidden: int, inner: int, heads: int) -> dict[str, int]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads}


SIZES = {
    "Llama 3.2 1B": llama(16, sized(2048, 8192, 32), 1.24, tie_word_embeddings=True, head_dim=64),
    "Llama 3.1 8B": llama(32, sized(4096, 14_336, 32), 8.03),
    "Llama 3.1 70B": llama(80, sized(8192, 28_672, 64), 70.6),
    "Llama 3.1 405B": llama(126, WIDE, 405.9),
    "Mixtral 8x7B": Size(
        "Mixtral",
        46.7,
        {**MIXTRAL, **sized(4096, 14_336, 32), "vocab_size": 32_000, "num_hidden_layers": 32},
    ),
    "Mixtral 8x22B": Size(
        "Mixtral",
        140.6,
        {**MIXTRAL, **sized(6144, 16_384, 48), "vocab_size": 32_768, "num_hidden_layers": 56},
    ),
    "Qwen3 30B-A3B": Size(
        "Qwen3Moe",
        30.5,
        {**QWEN, **sized(2048, 6144, 32), "num_hidden_layers": 48, "moe_intermediate_size": 768},
    ),
    "Qwen3 235B-A22B": Size(
        "Qwen3Moe",
        235.1,
        {**QWEN, **sized(4096, 12_288, 64), "num_hidden_layers": 94, "moe_intermediate_size": 1536},
    ),
    "DeepSeek-V3": Size(
        "DeepseekV3",
        671.0,
        {
            **sized(7168, 18_432, 128),
            "vocab_size": 129_280,
            "num_hidden_layers": 61,
            "num_key_value_heads": 128,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_group": 8,
            "topk_group": 4,
        },
    ),
}
LARGE = ("Llama 3.1 405B", "Mixtral 8x22B", "Qwen3 235B-A22B", "DeepSeek-V3")
# For the law: one architecture, more and more of it, and the same with hardly any parameters.
DEPTHS = (8, 16, 32, 64)
LAW = {f"{layers} layers, wide": llama(layers, WIDE, None) for layers in DEPTHS}
LAW |= {f"{layers} layers, narrow": llama(layers, NARROW, None) for layers in DEPTHS}

TASKS = ("CausalLM", "SequenceClassification")
SMALL = {**sized(64, 64, 4), "num_hidden_layers": 2, "vocab_size": 100, "num_key_value_heads": 4}
STEPS = ("build", "audit", "find_heads", "replace_head", "undo", "torchinfo")


def build(size: Size, task: str, **options: Any) -> torch.nn.Module:
    """A model on meta."""
    import transformers

    config_of = getattr(transformers, f"{size.config}Config")
    model_of = getattr(transformers, f"{size.config}For{task}")
    with torch.device("meta"):
        made: torch.nn.Module = model_of(
            config_of(
                **{"tie_word_embeddings": False, "pad_token_id": 0, **size.options, **options}
            )
        )
    return made


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak then is that of the whole process
        return


def _peak() -> int:
    """The most bytes the process has held since the last reset."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def through(size: Size, task: str, **options: Any) -> dict[str, Any]:
    """Every step with one model: seconds, growth of the peak, and what came out."""
    import torchinfo
    from surgery_plugins.transformers import FAMILY

    import surgery
    from surgery.families.registry import Registry

    known = Registry.of(FAMILY)
    found: dict[str, Any] = {}
    measured: dict[str, tuple[float, float]] = {}

    def step(name: str, run: Callable[[], Any]) -> Any:
        # A full collection takes longer than an audit, and falls into any step.
        gc.collect()
        gc.disable()
        _reset_peak()
        before, start = _peak(), time.thread_time()
        try:
            result = run()
        finally:
            seconds = time.thread_time() - start
            gc.enable()
        measured[name] = seconds, max(_peak() - before, 0)
        return result

    model = step("build", lambda: build(size, task, **options))
    audit = surgery.audit(model)
    step("audit", lambda: len(surgery.audit(model).rows))
    heads = step("find_heads", lambda: surgery.find_heads(model, registry=known))
    for head in heads:
        if head.tied_to:
            own = torch.nn.Linear(head.in_features, head.num_classes, bias=False, device="meta")
            surgery.replace(model, {head.address: own}, registry=known)
    before = surgery.audit(model)
    outcome = step("replace_head", lambda: surgery.replace_head(model, 7, registry=known))
    step("undo", outcome.undo)
    back = surgery.audit(model) == before
    step("torchinfo", lambda: torchinfo.summary(model, verbose=0))
    ids = {"input_ids": torch.zeros(2, 16, dtype=torch.long, device="meta"), "use_cache": False}
    try:
        step(
            "torchinfo, input",
            lambda: torchinfo.summary(model, input_data=ids, device="meta", verbose=0),
        )
    except Exception as error:  # what it fails with is part of the result
        found["torchinfo failed"] = f"{type(error.__cause__ or error).__name__}"
    return {
        **found,
        "modules": len(list(model.modules())),
        "parameters": audit.total,
        "back": back,
        "heads": [[head.address, head.num_classes, list(head.tied_to)] for head in heads],
        "steps": measured,
    }


def child(name: str, task: str) -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    size = {**SIZES, **LAW}[name]
    through(size, task, **SMALL)
    return through(size, task)


def measure(name: str, task: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", name, task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ({task}) failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    published = {**SIZES, **LAW}[name].published
    billions = found["parameters"] / 1e9
    if published is not None and task == "CausalLM":
        digits = 2 if published < 10 else 1
        if round(billions, digits) != published:
            raise SystemExit(f"{name}: {billions:.3f}B parameters, published are {published}B")
    if not found["back"]:
        raise SystemExit(f"{name}: undo left another model")
    print(f"{name}, {task}: {found['modules']} modules, {billions:.1f}B", flush=True)
    return found


def cells(found: Mapping[str, Any]) -> list[str]:
    steps = found["steps"]
    failed = found.get("torchinfo failed")
    return [
        *(duration(steps[step][0]) for step in STEPS),
        f"fails: {failed}" if failed else duration(steps["torchinfo, input"][0]),
    ]


def growth(found: Mapping[str, Any]) -> list[str]:
    return [f"{found['steps'][step][1] / 2**20:,.0f} MiB" for step in STEPS]


def fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Least squares: what a step costs at no module, at each, and the largest relative miss."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope /= sum((x - mean_x) ** 2 for x, _ in points)
    start = mean_y - slope * mean_x
    return start, slope, max(abs(start + slope * x - y) / y for x, y in points)


def law(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line through the times of Llama's models, from few narrow layers to many wide ones."""
    rows = []
    for step in STEPS:
        start, slope, miss = fitted([(f["modules"], f["steps"][step][0]) for f in found.values()])
        rows.append([step, f"{start * 1e3:.1f} ms", duration(slope), f"{miss:.0%}"])
    return markdown(["", "at the start", "a module", "off by at most"], rows)


def written(
    published: Mapping[tuple[str, str], Mapping[str, Any]], grown: Mapping[str, Mapping[str, Any]]
) -> str:
    parts = [WHAT]
    for task in TASKS:
        chosen = {name: found for (name, its), found in published.items() if its == task}
        if not chosen:
            continue
        heading = ["", "parameters", "modules", "head", *STEPS, "torchinfo, input"]
        rows = [
            [
                name,
                f"{found['parameters']:,}",
                f"{found['modules']:,}",
                "; ".join(
                    f"`{address}` {classes:,}" + (", tied" if tied else "")
                    for address, classes, tied in found["heads"]
                ),
                *cells(found),
            ]
            for name, found in chosen.items()
        ]
        memory = [[name, *growth(found)] for name, found in chosen.items()]
        parts += [f"## `...For{task}`", markdown(heading, rows)]
        parts += [
            "How much more memory each step took at its peak:",
            markdown(["", *STEPS], memory),
        ]
    parts += [
        "## The law",
        "A line through the processor times of Llama's models against their modules: "
        + "; ".join(
            f"{n}, {f['parameters'] / 1e9:,.1f}B, {f['modules']:,}" for n, f in grown.items()
        )
        + ".",
        law(grown),
        machine("transformers", "torchinfo"),
    ]
    return "\n\n".join(parts)


def main() -> None:
    published = {(name, "CausalLM"): measure(name, "CausalLM") for name in SIZES}
    published |= {(name, TASKS[1]): measure(name, TASKS[1]) for name in LARGE}
    grown = {
        n: f for (n, task), f in published.items() if n.startswith("Llama") and task == TASKS[0]
    }
    grown |= {name: measure(name, TASKS[0]) for name in LAW}
    publish("scale", "Language models on a laptop", written(published, grown))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(child(sys.argv[1], sys.argv[2])))
    else:
        main()
