"""Merging at the size of a 7B model, against `cp` and mergekit: `make peer`, then `python tests/benchmarks/merge.py`.

Takes about a quarter of an hour on 2 cores, and 20 GB in TMPDIR for the default 8 layers (65 GB for --layers 32). The rows on
XFS need root and xfsprogs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import REPOSITORY, Run, machine, measure

sys.path.insert(0, str(REPOSITORY / "workflow"))
from strata.families import expected_tensors
from strata.recipe import Recipe
from strata.shapes import shape_of
from strata.sources import tree_sha256

MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "dtype": "bfloat16", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "sliding_window": None, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NARROW = MISTRAL | {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 2222,
}  # fmt: skip
WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "unk_token": "<unk>"}
BLOCK = 64 << 20  # bytes of random weights, from which every tensor takes its own stretch
SHARD = 5_000_000_000  # bytes, as on the hub
INDEX = "model.safetensors.index.json"
Timed = tuple[Run, float]  # (the run, GB that its output took on the disk)


@dataclass(frozen=True)
class Bench:
    folder: Path
    layers: int
    runs: int
    tools: list[str]
    peer: Path

    def model(self, seed: int) -> Path:
        folder = self.folder / f"model-{seed}"
        return folder if folder.exists() else write_model(folder, MISTRAL | {"num_hidden_layers": self.layers}, seed)


def write_model(folder: Path, config: dict[str, Any], seed: int) -> Path:
    """A model of random, finite bfloat16 weights below 1/8, in shards as hub checkpoints have them."""
    block = bytearray(random.Random(seed).randbytes(BLOCK))
    block[1::2] = block[1::2].translate(bytes(byte & 0x81 | 0x3C for byte in range(256)))  # exponents 2^-7 to 2^-4
    shards, total = dict[str, dict[str, tuple[int, ...]]](), 0
    for name, shape in expected_tensors(config).items():
        shards.setdefault(f"model-{total // SHARD + 1:05d}.safetensors", {})[name] = shape
        total += 2 * math.prod(shape)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    starts = {name: number * 7_654_322 % BLOCK for number, name in enumerate(weight_map)}  # no two alike
    folder.mkdir()
    for file, tensors in shards.items():
        table, end = {}, 0
        for name, shape in sorted(tensors.items()):
            begin, end = end, end + 2 * math.prod(shape)
            table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        header = json.dumps({"__metadata__": {"format": "pt"}, **table}).encode()
        header += b" " * (-len(header) % 8)  # as the library does it, not to a block of the disk as Strata
        with (folder / file).open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for name in table:
                left, start = 2 * math.prod(tensors[name]), starts[name]
                while left:
                    left, start = left - stream.write(memoryview(block)[start : start + left]), 0
    for file, value in (
        ("config.json", config), (INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}),
        ("tokenizer.json", {"version": "1.0", "added_tokens": [], "model": WORDS}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):  # fmt: skip
        (folder / file).write_text(json.dumps(value))
    return folder


def slices(*parts: tuple[Path, int, int]) -> str:
    """mergekit's YAML for a stack of these layers, end excluded."""
    lines = [f"  - sources: [{{model: {model}, layer_range: [{begin}, {end}]}}]" for model, begin, end in parts]
    return "\n".join(["merge_method: passthrough", "slices:", *lines, ""])


def dus(bench: Bench, model: Path) -> str:
    """As SOLAR, which drops 8 of 32: L layers become 1.5 L."""
    return slices((model, 0, bench.layers - bench.layers // 4), (model, bench.layers // 4, bench.layers))


def strata(*arguments: str | Path) -> list[str]:
    return ["env", f"PYTHONPATH={REPOSITORY / 'workflow'}", sys.executable, "-m", "strata", *map(str, arguments)]


def merge(bench: Bench, tool: str, text: str, out: Path) -> list[str]:
    """The command of a tool that merges what the YAML `text` says into `out`."""
    file = bench.folder / "merge.yaml"
    file.write_text(text + "dtype: bfloat16\n")
    if tool == "strata":
        return strata("merge", file, out)
    offline = ["env", "-u", "PYTHONPATH", "HF_HUB_OFFLINE=1"]  # or its model card asks the hub for each parent
    return [*offline, str(bench.peer / "bin" / "mergekit-yaml"), str(file), str(out), "--lazy-unpickle"]


def timed(bench: Bench, command: list[str], out: Path) -> Timed:
    """Median time and largest peaks after a warm-up, each run with nothing left to write back from the one before."""
    runs, taken = [], 0
    for _ in range(bench.runs + 1):
        remove(out)
        os.sync()
        time.sleep(1)  # XFS frees blocks in the background
        before = shutil.disk_usage(out.parent).free
        runs.append(measure(command, bench.folder))
        os.sync()
        taken = before - shutil.disk_usage(out).free
    seconds = statistics.median(run.seconds for run in runs[1:])
    peak, anonymous = max(run.peak_mb for run in runs[1:]), max(run.peak_anonymous_mb for run in runs[1:])
    return Run(seconds, peak, anonymous, runs[-1].output), taken / 1e9


def remove(folder: Path) -> None:
    """Remove a folder, a read-only one of the store too."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
        shutil.rmtree(folder)


def show(what: str, tool: str, result: Timed, copy: float = 0, note: str = "") -> None:
    run, taken = result
    ratio = f"{run.seconds / copy:.2f}" if copy else ""
    memory = f"{run.peak_anonymous_mb:,.0f} MB | {run.peak_mb:,.0f} MB"
    print(f"| {what} | {tool} | {run.seconds:.2f} s | {ratio} | {memory} | {taken:.2f} GB | {note} |", flush=True)


def show_with_copies(bench: Bench, what: str, results: dict[str, Timed], out: Path, note: str = "") -> float:
    """Rows of results, and of copying one of them to the same file system. Returns the seconds of a real copy."""
    copy = out.with_name("copy")
    for mode in ("never", "auto"):  # auto is what plain `cp` does: it shares blocks where the file system can
        results[f"cp --reflink={mode}"] = timed(bench, ["cp", "-r", f"--reflink={mode}", f"{out}", f"{copy}"], copy)
    remove(copy)
    seconds = results["cp --reflink=never"][0].seconds
    for tool, result in results.items():
        show(what, tool, result, seconds, note if tool == "strata" else "")
    return seconds


def passthrough(bench: Bench) -> None:
    """Depth up-scaling from shards as the hub has them."""
    out, text = bench.folder / "out", dus(bench, bench.model(1))
    results = {tool: timed(bench, merge(bench, tool, text, out), out) for tool in bench.tools}
    show_with_copies(bench, "DUS", results, out)
    remove(out)


def arithmetic(bench: Bench) -> None:
    """An even linear or SLERP mix of two models: time, memory and error."""
    a, b, out = bench.model(1), bench.model(2), bench.folder / "out"
    half = "parameters: {weight: 0.5}"
    linear = f"merge_method: linear\nmodels: [{{model: {a}, {half}}}, {{model: {b}, {half}}}]\n"
    slerp = f"merge_method: slerp\nbase_model: {a}\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{t: 0.5}}\n"
    for method, text in (("linear", linear), ("slerp", slerp)):
        for tool in bench.tools:
            result = timed(bench, merge(bench, tool, text, out), out)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # torch stays there
                worst, mean = pool.submit(errors, method, a, b, out, bench.layers - 1).result()
            show(method, tool, result, note=f"error at most {worst:.4f}, mean {mean:.4f} half ulp")
            remove(out)
    remove(b)


def errors(method: str, a: Path, b: Path, out: Path, last: int) -> tuple[float, float]:
    """Largest and mean error against float64, in half units in the last place of bfloat16: rounded right, at most 1."""
    import torch
    from safetensors import safe_open

    def read(folder: Path, name: str) -> Any:
        index = folder / INDEX
        file = json.loads(index.read_bytes())["weight_map"][name] if index.exists() else "model.safetensors"
        with safe_open(folder / file, framework="pt") as opened:
            return opened.get_tensor(name).double()

    names = ["self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"]
    worst, total, count = 0.0, 0.0, 0
    for name in ["model.norm.weight", *(f"model.layers.{n}.{name}" for n in (0, last) for name in names)]:
        x, y, got = read(a, name), read(b, name), read(out, name)
        angle = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
        exact = (x + y) * (torch.sin(angle / 2) / torch.sin(angle) if method == "slerp" else 0.5)
        off = torch.ldexp((got - exact).abs(), 9 - torch.frexp(exact).exponent)  # mantissas in [1/2, 1), 8 bits kept
        worst, total, count = max(worst, float(off.max())), total + float(off.sum()), count + off.numel()
    return worst, total / count


def store(bench: Bench, place: Path | None = None) -> float:
    """Depth up-scaling in Strata's store, where a shard that a parent has too is a link. Returns a real copy's time."""
    root, model = (place or bench.folder) / "results", bench.model(1)
    fetch = Recipe("fetch", {"sha256": tree_sha256(model, False)})
    init = Recipe("init", {"architecture": "mistral", "shape": shape_of(model)}, (), (fetch.id,))
    up = Recipe("merge", {"method": "dus", "drop": bench.layers // 4}, (init.id,))
    measure(strata("--root", root, "fetch", fetch.canonical, "--location", model), bench.folder)
    measure(strata("--root", root, "init", init.canonical), bench.folder)
    remove(root / fetch.kind)  # the disk has better uses
    out = root / up.kind / up.id
    results = {"strata": timed(bench, strata("--root", root, "merge", up.canonical), out)}
    files = [file.stat() for file in out.iterdir()]
    linked = sum(file.st_size for file in files if file.st_nlink > 1) / sum(file.st_size for file in files)
    note, what = f"{linked:.0%} of the bytes are links", "DUS in the store" + ", XFS" * bool(place)
    seconds = show_with_copies(bench, what, results, out, note)
    remove(root)
    return seconds


def reflink(bench: Bench) -> None:
    """Both ways of depth up-scaling where files can share blocks: on XFS, in a sparse image."""
    place, image = bench.folder / "xfs", bench.folder / "xfs.img"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(4 * sum(file.stat().st_size for file in bench.model(1).iterdir()) + (4 << 30))
    try:
        for words in ("mkfs.xfs -q -m reflink=1 xfs.img", "mount -o loop,discard xfs.img xfs"):
            subprocess.run(words.split(), cwd=bench.folder, check=True, capture_output=True, text=True)
        seconds = store(bench, place)
        model, out = Path(shutil.copytree(bench.model(1), place / "model")), place / "out"
        show("DUS, XFS", "strata", timed(bench, merge(bench, "strata", dus(bench, model), out), out), seconds)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"| DUS, XFS | | not measured: {getattr(error, 'stderr', '') or error} |")
    finally:
        subprocess.run(["umount", place], check=False, capture_output=True)  # it may not be mounted
        image.unlink()


def many(bench: Bench) -> None:
    """20,001 tensors from two parents of as many. Not with mergekit, which takes minutes."""
    a, b = (write_model(bench.folder / f"narrow-{seed}", NARROW, seed) for seed in (1, 2))
    out = bench.folder / "out"
    command = merge(bench, "strata", slices((a, 0, 1111), (b, 1111, 2222)), out)
    result = timed(bench, ["env", "PYTHONPROFILEIMPORTTIME=1", *command], out)
    modules = {line.rpartition("|")[2].strip() for line in result[0].output.splitlines()}
    heavy = ", ".join(module for module in ("torch", "numpy", "pandas") if module in modules)
    show("20,001 tensors", "strata", result, note=f"imports {heavy or 'no torch, numpy or pandas'}")
    remove(out)


ROWS: dict[str, Callable[[Bench], object]] = {
    row.__name__: row for row in (passthrough, arithmetic, store, reflink, many)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8, help="of the model; Mistral 7B has 32 (default: 8)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--tools", nargs="+", choices=["mergekit", "strata"], default=["mergekit", "strata"])
    parser.add_argument("--peer", type=Path, default=REPOSITORY / ".venv-mergekit", help="mergekit's environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.layers, options.runs, options.tools, options.peer.absolute())
        print("| what | with | time | of cp | anonymous | resident | on disk | |\n|---|---|" + "---:|" * 5 + "---|")
        for row in options.only:
            ROWS[row](bench)
    print(f"\n{options.layers} layers in bfloat16; {machine()}; medians of {options.runs} after a warm-up.")


if __name__ == "__main__":
    main()
