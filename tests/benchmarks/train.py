"""Training beside a bare loop and transformers' Trainer, its memory, and its speed on a GPU: `python tests/benchmarks/train.py`.

Reads the base and `dus`, 48 layers, that `make results` has made (`--results`). Takes about eight minutes on 2 cores and
10 GB of memory. `--small` takes a random model instead, for a look at the script; a GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from measure import REPOSITORY, machine, measure

sys.path.insert(0, str(REPOSITORY / "workflow"))
sys.path.insert(0, str(REPOSITORY / "tests"))
import torch
from torch.utils._python_dispatch import _disable_current_modes

import lessons
from strata import families, methods, store
from strata.plan import identity
from strata.recipe import Recipe
from strata.tokens import Tokens
from strata.train import flops, learner, loop, operation
from strata.train.loop import Run
from strata.train.parallel import Ranks
from strata.train.state import State
from strata.train.task import pretraining

SETTINGS: dict[str, Any] = lessons.SETTINGS | {
    "length": 512, "batch": 2, "micro_batch": 1, "learning_rate": 2e-4, "warmup": 0.0, "decay": 0.0,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "use_cache": False,
}  # fmt: skip


def shape(hidden: int, inner: int, layers: int, heads: int, keys: int) -> dict[str, Any]:
    return LLAMA | {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": hidden // heads,
    }  # fmt: skip


SEVEN = shape(4096, 11008, 32, 32, 32)
SPARING = {"micro_batch": 4, "batch": 32, "activation_checkpointing": True}
# Of each GPU row: the model, the settings that differ, and its target. What is computed twice counts once.
GPU: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "0.1B": (shape(768, 2048, 12, 12, 12), {"micro_batch": 16, "batch": 128}, "MFU 45 %"),
    "0.4B": (shape(1024, 2816, 24, 16, 16), {"micro_batch": 8, "batch": 64}, "MFU 45 %"),
    "1B": (shape(2048, 8192, 16, 32, 8), {"micro_batch": 8, "batch": 64}, "MFU 50 %"),
    "7B": (SEVEN, {"micro_batch": 1, "batch": 32}, "MFU 48 %"),
    "7B, activation checkpointing": (SEVEN, SPARING, "MFU 48 %"),
    "LLaMA-Pro 7B to 8.3B, activation checkpointing": (SEVEN, SPARING | {"train": "new"}, "60 GB"),
}


@dataclass(frozen=True)
class Bench:
    """A scratch store with a base, a deeper model made of it, and one long document."""

    root: Path
    base: Any
    deep: Any
    data: Any
    steps: int


class Finished(Exception):
    """A run was measured; there is nothing to publish."""


def prepare(folder: Path, options: argparse.Namespace) -> Bench:
    root = folder / "results"
    if options.small:
        base = lessons.base(
            root, hidden_size=256, intermediate_size=768, num_hidden_layers=8, max_position_embeddings=512
        )
        deep = lessons.merged(root, base, method="dus", drop=2)
    else:
        found = [(options.results / "variants" / name).resolve() for name in ("base", "dus")]
        (root / "checkpoints").mkdir(parents=True)
        shutil.copy(options.results / "store.json", root)
        for path in found:
            shutil.copytree(path, root / "checkpoints" / path.name)
        base, deep = (store.require(root, path.name) for path in found)
    # One document, so that windows have no seams and every loop does the same work; code is text that lies here.
    text = "\n".join(file.read_text() for file in sorted((REPOSITORY / "workflow" / "strata").rglob("*.py")))
    data = lessons.tokens(root, base, lessons.fetched(root, "code", {"code.txt": text}))
    return Bench(root, base, deep, data, options.steps)


def recipe(bench: Bench, parent: Any, steps: int, **changes: Any) -> Recipe:
    parameters = SETTINGS | {"data": [[0, 1.0]]} | changes
    tokens = steps * parameters["batch"] * parameters["length"]
    return Recipe("pretrain", parameters | {"tokens": tokens}, (parent.id,), (bench.data.id,))


def in_place_of_the_loop(bench: Bench, wanted: Recipe, body: Callable[[Run, State], None]) -> None:
    """Let `strata pretrain` do all that it does up to its first step, and call `body` there."""

    def called(run: Run, state: State) -> State:
        body(run, state)
        raise Finished

    with patch.object(operation, "go_on", called):
        try:
            operation.train(bench.root, wanted)
        except Finished:
            gc.collect()


def our_step(run: Run, state: State) -> float:
    """Seconds of the loop's next step, with all that comes around a step."""
    torch.use_deterministic_algorithms(run.ranks.device.type == "cpu", warn_only=True)  # as it has set it itself
    state.steps = state.step + 1
    start = time.perf_counter()
    loop.train(run, state)
    seconds = time.perf_counter() - start
    torch.use_deterministic_algorithms(False)
    return seconds


def batches(run: Run, step: int) -> list[tuple[Any, Any]]:
    """A step's micro-batches: ids and labels, (micro_batch, length) each."""
    size, micro = run.parameters["batch"], run.parameters["micro_batch"]
    parts = [range(first, first + micro) for first in range(step * size, (step + 1) * size, micro)]
    return [(torch.from_numpy(b.ids), torch.from_numpy(b.labels)) for b in map(run.task.draw, parts)]


def bare_step(model: Any, optimizer: Any, drawn: list[tuple[Any, Any]], dtype: str) -> float:
    """Seconds of a step that does nothing but learn."""
    start = time.perf_counter()
    for ids, labels in drawn:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        (loss / len(drawn)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def against_bare_loop(bench: Bench, dtype: str) -> None:
    """Tokens per second of both, step by step in turns, after a step that is not counted."""
    ours, bare = [], []

    def measured(run: Run, state: State) -> None:
        model = deepcopy(run.learner.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["learning_rate"], fused=True)
        for number in range(bench.steps + 1):
            drawn = batches(run, number)
            for turn in ("ours", "bare") if number % 2 else ("bare", "ours"):
                if turn == "ours":
                    ours.append(our_step(run, state))
                else:
                    with _disable_current_modes():  # without what `strata.train.bfloat16` does for ours
                        bare.append(bare_step(model, optimizer, drawn, dtype))

    in_place_of_the_loop(bench, recipe(bench, bench.deep, bench.steps + 1, dtype=dtype), measured)
    tokens = SETTINGS["batch"] * SETTINGS["length"]
    mine, theirs = (tokens / statistics.median(seconds[1:]) for seconds in (ours, bare))
    ratio = statistics.median(b / a for a, b in zip(ours[1:], bare[1:], strict=True))
    row(
        f"{dtype}, against a bare loop", f"{mine:,.0f} tokens/s", f"{theirs:,.0f} tokens/s", f"{ratio:.3f} of its speed"
    )


def against_trainer(bench: Bench, folder: Path) -> None:
    """Seconds of a step of both, of 20 in turns after one that is not counted; and the losses after them."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    ours, theirs = [], []
    steps = 21
    wanted = recipe(bench, bench.base, steps, batch=1, weight_decay=0.0)

    def measured(run: Run, state: State) -> None:
        class Between(TrainerCallback):  # type: ignore[misc]
            mark = 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.mark = self.mark or time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                theirs.append(time.perf_counter() - self.mark)
                ours.append(our_step(run, state))
                self.mark = time.perf_counter()

        drawn = [run.task.draw([number]) for number in range(steps)]
        whole = [np.concatenate([batch.ids[0], batch.labels[0, -1:]]) for batch in drawn]  # it shifts labels itself
        p = run.parameters
        arguments = TrainingArguments(
            output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
            disable_tqdm=True, max_steps=steps, per_device_train_batch_size=1, train_sampling_strategy="sequential",
            learning_rate=p["learning_rate"], lr_scheduler_type="constant", weight_decay=0.0, adam_beta1=p["betas"][0],
            adam_beta2=p["betas"][1], adam_epsilon=p["epsilon"], max_grad_norm=p["clip"],
        )  # fmt: skip
        samples = [{"input_ids": ids, "labels": ids} for ids in whole]
        trainer = Trainer(deepcopy(run.learner.model), arguments, train_dataset=samples, callbacks=[Between()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        mine, other = (statistics.median(seconds[1:]) for seconds in (ours, theirs))
        ratio = statistics.median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True))
        last = state.losses[-1]["loss"]
        row("float32, the base, against transformers' Trainer", f"{mine:.2f} s a step", f"{other:.2f} s a step",
            f"{ratio:.3f} of its time; loss after 20 steps {last:.4f}, {abs(last - losses[-1]):.1e} apart")  # fmt: skip

    in_place_of_the_loop(bench, wanted, measured)


def memory(bench: Bench) -> None:
    """Peak memory of two whole processes: all layers, and LLaMA-Pro's new ones."""
    groups = next(groups for groups in (6, 2) if bench.base.facts["layers"] % groups == 0)
    plan = {"method": "block_expansion", "groups": groups, "copies": 1, "position": "even"}
    parent = lessons.merged(bench.root, bench.base, **plan)
    for dtype in ("float32", "bfloat16"):
        peaks = []
        for train in ("new", "all"):
            wanted = recipe(bench, parent, 2, dtype=dtype, train=train)
            run = measure(strata("--root", str(bench.root), "pretrain", wanted.canonical), bench.root)
            peaks.append(run.peak_anonymous_mb)
        show = [f"{peak:,.0f} MB" for peak in peaks]
        row(f"{dtype}, memory: {groups} new layers train, or all", *show, f"{peaks[0] / peaks[1]:.2f} of it")


def strata(*arguments: str) -> list[str]:
    return ["env", f"PYTHONPATH={REPOSITORY / 'workflow'}", sys.executable, "-m", "strata", *arguments]


def on_gpu(name: str) -> None:
    """Speed and memory of a random model in the loop on a GPU: a row."""
    config, changes, target = GPU[name]
    depth = config["num_hidden_layers"]
    made = methods.block_expansion(depth, 8, 1, "even") if changes.get("train") == "new" else identity(depth)
    parameters = SETTINGS | {"length": 2048, "dtype": "bfloat16", "device": "cuda", "data": [[0, 1.0]]} | changes
    warm, steps, tokens = 3, 5, parameters["batch"] * parameters["length"]
    parameters["tokens"] = (warm + steps) * tokens
    run, state = random_run(config | {"num_hidden_layers": len(made.layers)}, made.to_json(), parameters)
    seconds = [our_step(run, state) for _ in range(warm + steps)]  # a step ends when its gradient's norm is known here
    speed = tokens / statistics.median(seconds[warm:])
    mfu = f"MFU {speed * run.operations / run.peak:.1%}" if run.peak else "MFU not known"
    size = sum(parameter.numel() for parameter in run.learner.parameters.values()) / 1e9
    peak = torch.cuda.max_memory_allocated() / 1e9
    row(f"{name}, bfloat16, GPU", f"{speed:,.0f} tokens/s, {mfu}", "", f"{size:.2f} B, {peak:.1f} GB; target {target}")


def random_run(config: dict[str, Any], plan: dict[str, Any], parameters: dict[str, Any]) -> tuple[Run, State]:
    """A run as `strata pretrain` makes it, of a model and tokens that are drawn and never stored."""
    from transformers import AutoConfig, AutoModelForCausalLM

    device = torch.device(parameters["device"])

    def drawn(*_: Any) -> Any:
        with device:
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)

    tensors = {name: SimpleNamespace(tensor=SimpleNamespace(shape=size)) for name, size in families.each_tensor(config)}
    checkpoint: Any = SimpleNamespace(facts={"plan": plan, "dtype": "bfloat16"})
    opened: Any = SimpleNamespace(config=config, tensors=tensors)
    ranks = Ranks(0, 1, device)
    with patch.object(learner, "model_of", drawn):
        made = learner.make_learner(checkpoint, opened, parameters, ranks)
    count = parameters["tokens"] + 1
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], count, np.uint16)
    source = Tokens("random", "text", ids, None, np.array([0, count]), config["vocab_size"], "", None)
    task = pretraining([source], parameters)
    run = Run(
        task=task, learner=made, parameters=parameters, ranks=ranks, heldout=[], journal=None,
        snapshot=lambda _: None, last=lambda: "none",
        operations=flops.operations(config, made.learnt, parameters["length"]), peak=flops.peak(device), label="random",
    )  # fmt: skip
    return run, State(task.steps, task.steps)


def row(what: str, ours: str, theirs: str, note: str) -> None:
    print(f"| {what} | {ours} | {theirs} | {note} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results")
    parser.add_argument("--steps", type=int, default=5, help="of each loop that are counted against the bare loop")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=["bare", "trainer", "memory", "gpu"])
    parser.add_argument("--gpu-row", choices=list(GPU), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gpu_row:  # in a process of its own: its memory is its own, and its failure too
        on_gpu(options.gpu_row)
        return
    print("| what | Strata | the other | |\n|---|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        bench = prepare(folder, options) if options.only != "gpu" else None
        for part, what in {
            "bare": lambda: [against_bare_loop(bench, dtype) for dtype in ("float32", "bfloat16")],
            "trainer": lambda: against_trainer(bench, folder), "memory": lambda: memory(bench), "gpu": gpu_rows,
        }.items():  # fmt: skip
            if options.only in (None, part):
                what()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{machine()}, torch {torch.__version__}, {device}; medians of {options.steps} steps after one, in turns.")


def gpu_rows() -> None:
    if not torch.cuda.is_available():
        row("GPU", "not measured", "", "no GPU here")
        return
    for name in GPU:
        try:
            output = measure([sys.executable, __file__, "--gpu-row", name], REPOSITORY).output
            print(output.strip().splitlines()[-1], flush=True)
        except RuntimeError as error:
            row(f"{name}, GPU", "failed", "", str(error).strip().splitlines()[-1])


if __name__ == "__main__":
    main()
