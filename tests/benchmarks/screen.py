"""Scoring plans from one tree of layers, against scoring each alone: `python tests/benchmarks/screen.py`.

Takes about 20 minutes on 2 cores. The models have random weights of real shapes, which take as long as trained
ones. `--device cuda` measures a model of 1.2 billion parameters in bfloat16 instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import REPOSITORY, machine

sys.path.insert(0, str(REPOSITORY / "workflow"))
from strata.screen.search import Space, first
from strata.screen.walk import Order, steps

SMALL = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
LARGE = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = ("dus", "interlocked", "repeat", "blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plans", type=int, default=16, help="that are scored, of 500")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of each document")
    options = parser.parse_args()
    print(machine())
    print(json.dumps(planned()))
    print(json.dumps(scored(options), indent=2))


def planned() -> dict[str, Any]:
    """Ten thousand plans: drawn, and how many layers they make together; no torch."""
    space = Space(80, tuple(range(82, 161, 2)), FAMILIES, (), 20_000, 8, 16, 1)  # half of a budget is drawn at once
    begun = time.perf_counter()
    orders = [one.order for one in first(space)]
    made = steps(orders)
    seconds = time.perf_counter() - begun
    return {"plans": len(orders), "layers": sum(map(len, orders)), "steps": made, "seconds": round(seconds, 2)}


def drawn(n: int, depth: int, plans: int) -> tuple[list[Order], float]:
    """Neighbours in the tree of 500 plans, from its middle, and the share of layers that the 500 have to compute."""
    space = Space(n, (depth,), FAMILIES, (), 1_000, 8, 16, 1)  # half of a budget is drawn at once
    orders = sorted(one.order for one in first(space))[:500]
    begin = (len(orders) - plans) // 2
    return orders[begin : begin + plans], steps(orders) / sum(map(len, orders))


def scored(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from strata.score.answers import Answers
    from strata.screen.score import score
    from strata.screen.stack import Batch
    from strata.screen.texts import Text

    is_cuda = options.device == "cuda"
    shape, depth = (LARGE, 26) if is_cuda else (SMALL, 48)
    torch.manual_seed(1)
    model = (
        LlamaForCausalLM(LlamaConfig(**shape)).to(options.device, torch.bfloat16 if is_cuda else torch.float32).eval()
    )
    ids = torch.randint(0, shape["vocab_size"], (options.documents, options.tokens), device=options.device)
    lengths = torch.full((options.documents,), options.tokens, device=options.device)
    text = Text([Batch(ids, lengths)], (options.tokens - 1,) * options.documents)
    orders, share_of_500 = drawn(shape["num_hidden_layers"], depth, options.plans)
    together, alone, far = [], [], 0.0
    peak = 0.0
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            found = score(model, text, orders, Answers(Path(folder), "x"), "plans")
            together.append(time.perf_counter() - begun)
        if not number:
            peak = (
                torch.cuda.max_memory_allocated()
                if is_cuda
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
        begun = time.perf_counter()
        losses = {order: one_by_one(model, order, ids) for order in orders}
        alone.append(time.perf_counter() - begun)
        far = max(far, *(abs(sum(found[order]) - losses[order]) / ids.numel() for order in orders))
    share = steps(orders) / sum(map(len, orders))
    ratios = [one / other for one, other in zip(together, alone, strict=True)]
    return {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "plans": len(orders), "layers_each": depth, "tokens": ids.numel(), "steps_share": round(share, 3),
        "seconds": [round(x, 1) for x in together], "seconds_alone": [round(x, 1) for x in alone],
        "ratio": round(statistics.median(ratios), 3), "ratio_wanted": round(1.1 * share, 3),
        "plans_an_hour": round(3600 * len(orders) / statistics.median(together)), "steps_share_of_500": round(share_of_500, 3),
        "peak_gb": round(peak / 1e9, 2), "largest_difference_nats_per_token": far,
    }  # fmt: skip


def one_by_one(model: Any, order: Order, ids: Any) -> float:
    """Nats under a model whose list of layers is this, weights shared, as transformers runs it."""
    import torch

    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[number] for number in order])
    model.config.num_hidden_layers = len(order)
    try:
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            return float(loss)
    finally:
        model.model.layers = layers
        model.config.num_hidden_layers = len(layers)


if __name__ == "__main__":
    main()
