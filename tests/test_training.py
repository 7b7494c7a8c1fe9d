"""What the config says of training: each stage's normal form in a recipe, its jobs, and mistakes with their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strata import experiment, forecast, training
from strata.errors import ConfigError
from strata.experiment import Experiment
from strata.job import Job
from strata.recipe import Recipe

Write = Callable[..., Path]
SHAPE = (
    "{family: llama, layers: 4, parameters: 100, bytes: 200, dtype: bfloat16, vocabulary: 16, hidden: 8, outside: 20}"
)
TEXT = f"""\
sources:
  m: {{path: model, sha256: {"a" * 64}, shape: {SHAPE}}}
  o: {{path: other, sha256: {"b" * 64}, shape: {SHAPE}}}
  old: {{path: old, sha256: {"c" * 64}}}
  new: {{path: new, sha256: {"d" * 64}}}
  scored: {{path: elsewhere, sha256: {"e" * 64}}}
variants:
  base: {{init: {{source: m}}}}
  other: {{init: {{source: o}}}}
  dus: {{parent: base, merge: {{method: dus, drop: 1}}}}
  pro: {{parent: base, merge: {{method: block_expansion, groups: 2}}}}
  late: {{parent: base, merge: {{method: prune, least: 1, by: block_influence, calibration: {{source: old}}}}}}
  x: {{parent: %s, %s}}
suites: [tiny.yaml]
"""
SUITE = f"""\
suite: tiny
version: 1
sources:
  documents: {{path: documents, sha256: {"e" * 64}}}
numerics: {{dtype: float32, batch_size: 3, max_length: 128, add_bos_token: false, seed: 1}}
tasks: {{text: {{kind: bits_per_byte, source: documents, bytes: 150}}}}
groups: {{all: [text]}}
"""
COMMON = {
    "length": 1024, "floor": 0.0, "betas": [0.9, 0.95], "epsilon": 1e-8, "clip": 1.0, "train": "all", "multipliers": {},
    "dtype": "float32", "device": "cpu", "seed": 1234, "activation_checkpointing": False,
}  # fmt: skip
PRETRAIN, SFT, DPO = "data: {old: 1}, tokens: 10_000", "data: [old], template: solar", "data: [old], template: alpaca"


@pytest.fixture
def resolve(write_config: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Experiment]:
    """The experiment whose variant `x` is `parent`, trained as this says."""
    monkeypatch.chdir(tmp_path)
    write_config(SUITE, "tiny.yaml")

    def found(stage: str, says: str, parent: str = "dus", before: str = "", device: str = "cpu") -> Experiment:
        text = TEXT.replace("  x: ", f"{before}  x: ") % (parent, f"{stage}: {{{says}}}")
        return experiment.load([write_config(f"device: {device}\n{text}")])

    return found


def tokens(loaded: Experiment, source: str, **parameters: Any) -> str:
    """The id of a source's tokens by the first base's tokenizer."""
    base, fetched = loaded.variants["base"].job.id, loaded.sources[source].id
    return Recipe("tokenize", parameters or {"format": "text"}, (base,), (fetched,)).id


SMALL = "length: 128, batch: 4"


def test_the_normal_form_of_pretraining_with_every_default(resolve: Callable[..., Experiment]) -> None:
    found = resolve("pretrain", PRETRAIN)
    recipe = found.variants["x"].job.recipe
    assert recipe.parameters == COMMON | {
        "batch": 8, "micro_batch": 8, "learning_rate": 2e-4, "schedule": "wsd", "warmup": 0.05, "decay": 0.2,
        "weight_decay": 0.1, "tokens": 10_000, "data": [[0, 1.0]],
    }  # fmt: skip
    assert recipe.parents == (found.variants["dus"].job.id,)
    assert recipe.sources == (tokens(found, "old"),)


def test_the_normal_form_of_instruction_tuning(resolve: Callable[..., Experiment]) -> None:
    found = resolve("sft", "data: [old, {source: new, rows: 52_000}], template: solar, heldout: {source: scored}")
    recipe = found.variants["x"].job.recipe
    assert recipe.parameters == COMMON | {
        "batch": 32, "micro_batch": 32, "learning_rate": 2e-5, "schedule": "cosine", "warmup": 0.03, "decay": 0.0,
        "weight_decay": 0.0, "epochs": 3, "data": [0, 1], "heldout": {"source": 2, "tokens": 8192},
    }  # fmt: skip
    kind = {"format": "instructions", "template": "solar"}
    assert recipe.sources == (
        tokens(found, "old", **kind), tokens(found, "new", **kind, rows=52_000), tokens(found, "scored", **kind),
    )  # fmt: skip


def test_the_normal_form_of_alignment_whose_reference_is_a_job_of_its_own(resolve: Callable[..., Experiment]) -> None:
    found = resolve("dpo", DPO, device="cuda")
    recipe = found.variants["x"].job.recipe
    assert recipe.parameters == COMMON | {
        "batch": 32, "micro_batch": 32, "learning_rate": 5e-7, "schedule": "linear", "warmup": 0.1, "decay": 0.0,
        "weight_decay": 0.0, "epochs": 1, "data": [0], "beta": 0.1, "label_smoothing": 0.0, "dtype": "bfloat16",
        "device": "cuda",
    }  # fmt: skip
    pairs = tokens(found, "old", format="preferences", template="alpaca")
    asked = {"length": 1024, "dtype": "bfloat16", "device": "cuda"}
    reference = Recipe("reference", asked, (found.variants["dus"].job.id,), (pairs,)).id
    assert recipe.sources == (pairs, reference)
    assert [job.id for job in found.variants["x"].preparations] == [pairs, reference]
    assert {pairs, reference} <= found.jobs.keys()


def test_held_out_text_and_the_variant_to_get_back_to_are_sources(resolve: Callable[..., Experiment]) -> None:
    says = f"data: {{old: 3, new: 1}}, tokens: 40_000, {SMALL}, heldout: {{source: scored, tokens: 512}}, stop: {{recovered: base}}"
    found = resolve("pretrain", says)
    recipe, held = found.variants["x"].job.recipe, tokens(found, "scored")
    learnt = sorted([(tokens(found, "old"), 0.75), (tokens(found, "new"), 0.25)])
    assert recipe.sources == (*(id for id, _ in learnt), held, found.variants["base"].job.id)
    assert recipe.parameters["data"] == [[number, weight] for number, (_, weight) in enumerate(learnt)]
    assert recipe.parameters["heldout"] == {"source": 2, "tokens": 512}
    assert recipe.parameters["stop"] == {"recovered": 3, "within": 0.0, "patience": 1}
    assert recipe.parameters["every"] == 4_000
    assert found.variants["x"].parents == ("dus",)  # it waits for the other, and is not made of it


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data: {old: 1, new: 2}, tokens: 9_000", "data: {new: 1.0, old: 0.5}, tokens: 9_000"),
        ("data: {old: 1, new: 0}, tokens: 9_000", "data: {old: 3}, tokens: 9_000"),
        (f"{PRETRAIN}, clip: 1", f"{PRETRAIN}, clip: 1.0, decay: 0.2"),
        (f"{PRETRAIN}, micro_batch: 8", PRETRAIN),
        (f"{PRETRAIN}, processes: 4", PRETRAIN),
        (f"{PRETRAIN}, stored: bfloat16", PRETRAIN),
        (f"{PRETRAIN}, train: [3, 1, 3]", f"{PRETRAIN}, train: [1, 3]"),
        (f"{PRETRAIN}, multipliers: {{seams: 1, rest: 2}}", f"{PRETRAIN}, multipliers: {{rest: 2.0}}"),
    ],
)
def test_two_ways_to_say_one_thing_are_one_recipe(resolve: Callable[..., Experiment], one: str, other: str) -> None:
    assert resolve("pretrain", one).variants["x"].job.id == resolve("pretrain", other).variants["x"].job.id


def test_training_keeps_the_shape_and_stores_another_dtype_where_asked(resolve: Callable[..., Experiment]) -> None:
    found = resolve("pretrain", PRETRAIN)
    assert found.variants["x"].job.shape == found.variants["dus"].job.shape
    cast = resolve("pretrain", f"{PRETRAIN}, stored: float32").variants["x"].job
    assert cast.recipe.parameters["stored"] == "float32"
    assert cast.shape is not None and cast.shape.bytes == 4 * cast.shape.parameters


@pytest.mark.parametrize(
    ("parent", "train", "count"),
    [
        ("dus", "all", 140), ("dus", "seams", 40), ("pro", "new", 40), ("pro", "new+norms", 40), ("dus", "[0, 5]", 40),
        ("pro", "seams", 100), ("late", "new", 80),
    ],
)  # fmt: skip
def test_how_many_parameters_train_is_known_before_anything_runs(
    resolve: Callable[..., Experiment], parent: str, train: str, count: int
) -> None:
    """Of layers of 20 parameters, and 20 outside. Where an analysis decides the plan, it may be all of them."""
    assert resolve("pretrain", f"{PRETRAIN}, train: {train}", parent).variants["x"].job.trained == count


MISTAKES = [
    ("pretrain", "data: {old: 1}", ["missing key `tokens`", "variants.x.pretrain", "add `tokens:`"]),
    ("pretrain", f"{PRETRAIN}, lr: 1", ["unknown key `lr`", "variants.x.pretrain.lr"]),
    ("pretrain", f"{PRETRAIN}, tokens_: 1", ["unknown key", "remove it"]),
    ("pretrain", "data: {old: -1}, tokens: 10_000", ["variants.x.pretrain.data.old", "greater than or equal to 0", "-1"]),
    ("pretrain", "data: {old: 0, new: 0}, tokens: 10_000", ["the weights are all 0", "variants.x.pretrain.data"]),
    ("pretrain", "data: {}, tokens: 10_000", ["variants.x.pretrain.data", "at least 1 item"]),
    ("pretrain", "data: [old], tokens: 10_000", ["variants.x.pretrain.data", "a mapping"]),
    ("pretrain", "data: {odl: 1}, tokens: 10_000", ["no such source", "variants.x.pretrain.data.odl", "old, new", "odl"]),
    ("pretrain", "data: {m: 1}, tokens: 10_000", ["`m` is a model, not data", "variants.x.pretrain.data.m"]),
    ("pretrain", "data: {scored: 1}, tokens: 10_000", ["what the suite tiny is scored on", "pretrain.data.scored"]),
    ("pretrain", "data: {old: 1}, tokens: 8_191", ["smaller than one batch", "pretrain.tokens", "8 x 1024 tokens: 8,192", "8,191"]),
    ("pretrain", f"{PRETRAIN}, batch: 6, micro_batch: 4", ["no multiple of the micro-batch", "pretrain.micro_batch", "the batch, 6", "4"]),
    ("pretrain", f"{PRETRAIN}, processes: 3", ["cannot be divided among the processes", "pretrain.batch", "3 processes", "8"]),
    ("pretrain", f"{PRETRAIN}, processes: 2, micro_batch: 3", ["pretrain.micro_batch", "4, each process's share"]),
    ("pretrain", f"{PRETRAIN}, warmup: 0.9", ["longer than the run", "pretrain.warmup", "0.9 + 0.2"]),
    ("pretrain", f"{PRETRAIN}, decay: 1", ["longer than the run", "pretrain.decay", "0.05 + 1.0"]),
    ("pretrain", f"{PRETRAIN}, schedule: cosine, decay: 0.1", ["`decay` is for the schedule wsd", "pretrain.decay"]),
    ("pretrain", f"{PRETRAIN}, schedule: step", ["pretrain.schedule", "'wsd', 'cosine' or 'linear'", "'step'"]),
    ("pretrain", f"{PRETRAIN}, warmup: 1.5", ["pretrain.warmup", "less than or equal to 1"]),
    ("pretrain", f"{PRETRAIN}, learning_rate: 0", ["pretrain.learning_rate", "greater than 0"]),
    ("pretrain", f"{PRETRAIN}, learning_rate: 1e-4", ["write 1.0e-4"]),
    ("pretrain", f"{PRETRAIN}, betas: [0.9, 1.0]", ["pretrain.betas[1]", "less than 1"]),
    ("pretrain", f"{PRETRAIN}, clip: true", ["pretrain.clip", "number", "True"]),
    ("pretrain", f"{PRETRAIN}, every: 100", ["`every` without `heldout`", "pretrain.every", "add `heldout:"]),
    ("pretrain", f"{PRETRAIN}, stop: {{recovered: base}}", ["`stop` without `heldout`", "pretrain.stop"]),
    ("pretrain", f"{PRETRAIN}, heldout: {{source: old}}", ["`old` is held out, and trained on", "pretrain.heldout.source"]),
    ("pretrain", f"{PRETRAIN}, heldout: {{source: nope}}", ["no such source", "pretrain.heldout.source"]),
    ("pretrain", f"{PRETRAIN}, heldout: {{source: new}}, stop: {{recovered: bsae}}", ["no such variant", "pretrain.stop.recovered", "base, other", "bsae"]),
    ("pretrain", f"{PRETRAIN}, heldout: {{source: new}}, stop: {{recovered: x}}", ["made after it", "pretrain.stop.recovered", "x <- x"]),
    ("pretrain", f"{PRETRAIN}, heldout: {{source: new}}, stop: {{recovered: dus}}", ["`dus` is what the training starts from", "pretrain.stop.recovered"]),
    ("pretrain", f"{PRETRAIN}, heldout: {{source: new}}, stop: {{recovered: other}}", ["another tokenizer", "pretrain.stop.recovered"]),
    ("pretrain", f"{PRETRAIN}, train: new", ["the parent has no inserted layers", "pretrain.train", "got:      new"]),
    ("pretrain", f"{PRETRAIN}, train: new+norms", ["the parent has no inserted layers", "pretrain.train"]),
    ("pretrain", f"{PRETRAIN}, train: [0, 6]", ["no such layer", "pretrain.train[1]", "0 to 5: the parent has 6 layers", "6"]),
    ("pretrain", f"{PRETRAIN}, train: []", ["pretrain.train", "at least 1 item"]),
    ("pretrain", f"{PRETRAIN}, train: seam", ["pretrain.train", "'all', 'new', 'seams' or 'new+norms'"]),
    ("pretrain", f"{PRETRAIN}, train: {{new: 1}}", ["pretrain.train", "or a list of layer numbers"]),
    ("pretrain", f"{PRETRAIN}, multipliers: {{new: 2}}", ["of the class `new`", "pretrain.multipliers.new", "rest, seams"]),
    ("pretrain", f"{PRETRAIN}, train: seams, multipliers: {{seams: 0}}", ["nothing would train", "pretrain.multipliers"]),
    ("sft", "data: [old]", ["missing key `template`", "variants.x.sft"]),
    ("sft", f"{SFT}, tokens: 100", ["unknown key `tokens`", "variants.x.sft.tokens"]),
    ("sft", "data: [old], template: chatml", ["sft.template", "'alpaca', 'solar' or 'own'", "'chatml'"]),
    ("sft", "data: [old, {source: old, rows: 3}], template: own", ["the same data twice", "sft.data[1].source", "old and old"]),
    ("sft", "data: [old, scored], template: own", ["what the suite tiny is scored on", "sft.data[1]"]),
    ("sft", "data: [3], template: own", ["sft.data[0]", "string"]),
    ("sft", "data: [[old]], template: own", ["sft.data[0]", "{source: NAME, rows: number}"]),
    ("sft", f"{SFT}, epochs: 0", ["sft.epochs", "greater than 0"]),
    ("sft", f"{SFT}, stop: {{recovered: base}}", ["unknown key `stop`"]),
    ("dpo", f"{DPO}, heldout: {{source: new}}", ["unknown key `heldout`"]),
    ("dpo", f"{DPO}, label_smoothing: 0.5", ["dpo.label_smoothing", "less than 0.5"]),
    ("dpo", "data: [m], template: own", ["`m` is a model", "dpo.data[0]"]),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "says", "expected"), MISTAKES)
def test_a_mistake_is_told_with_the_variant_the_entry_and_what_it_should_be(
    resolve: Callable[..., Experiment], stage: str, says: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(stage, says)
    for text in ["config.yaml:14" if "variants" in str(caught.value) else "config.yaml", *expected]:
        assert text in str(caught.value)


def test_seams_of_a_model_that_has_none_and_layers_of_a_plan_to_come(resolve: Callable[..., Experiment]) -> None:
    with pytest.raises(ConfigError, match="the parent has no seams"):
        resolve("pretrain", f"{PRETRAIN}, train: seams", "base")
    with pytest.raises(ConfigError, match="0 to 2: the parent has 3 layers"):
        resolve("pretrain", f"{PRETRAIN}, train: [3]", "late")


def test_a_later_stage_trains_the_layers_of_the_plan_that_was_handed_down(resolve: Callable[..., Experiment]) -> None:
    before = "  y: {parent: pro, pretrain: {data: {new: 1}, tokens: 9_000, train: new}}\n"
    found = resolve("sft", f"{SFT}, train: new", "y", before)
    assert found.variants["x"].job.trained == found.variants["y"].job.trained == 40


def test_text_that_an_ancestor_learnt_from_cannot_be_held_out(resolve: Callable[..., Experiment]) -> None:
    before = "  y: {parent: dus, pretrain: {data: {new: 1}, tokens: 9_000}}\n"
    with pytest.raises(ConfigError, match="an ancestor has learnt from it"):
        resolve("pretrain", f"{PRETRAIN}, heldout: {{source: new}}", "y", before)


def test_own_is_the_template_that_the_parent_was_tuned_with(resolve: Callable[..., Experiment]) -> None:
    before = "  y: {parent: dus, sft: {data: [new], template: solar}}\n"
    one = resolve("dpo", "data: [old], template: own", "y", before).variants["x"]
    assert one.job.id == resolve("dpo", "data: [old], template: solar", "y", before).variants["x"].job.id
    untuned = resolve("dpo", "data: [old], template: own").variants["x"]
    assert untuned.preparations[0].recipe.parameters["template"] == "own"


def test_stages_that_read_the_same_text_share_its_tokens(resolve: Callable[..., Experiment]) -> None:
    before = f"  y: {{parent: base, pretrain: {{{PRETRAIN}}}}}\n"
    found = resolve("pretrain", PRETRAIN, "dus", before)
    assert found.variants["x"].preparations == found.variants["y"].preparations
    assert sum(id.startswith("tokenize-") for id in found.jobs) == 1


@pytest.mark.parametrize(
    ("stage", "says", "told"),
    [
        ("pretrain", PRETRAIN, "pretrain 10,000 tokens of old"),
        ("sft", f"{SFT}, train: seams", "sft solar 3 epochs of old, both sides of seams"),
        ("dpo", "data: [new, old], template: own, learning_rate: 0.001", "dpo own 1 epoch of new and old, learning rate 0.001"),
    ],
)  # fmt: skip
def test_a_summary_says_what_tells_variants_apart(
    resolve: Callable[..., Experiment], stage: str, says: str, told: str
) -> None:
    assert forecast.summary(resolve(stage, says).variants["x"]) == told


def test_a_forecast_says_what_trains_for_how_long_on_what(resolve: Callable[..., Experiment]) -> None:
    says = (
        f"data: {{old: 3, new: 1}}, tokens: 40_000, {SMALL}, train: seams, multipliers: {{seams: 2}}, "
        "heldout: {source: scored, tokens: 512}, stop: {recovered: base, within: 0.01}"
    )
    found = resolve("pretrain", says)
    told = "\n".join(forecast.outline(found, found.variants["x"]))
    for part in (
        "2 layers of 6 (2, 3): 40 of 140 parameters (28.6%)",
        "78, each of 4 windows of 128 tokens: 512 tokens; 64 tokens of the budget make no whole step",
        "wsd: up to 0.0002 in the first 5%, down to 0 in the last 20%, 2 times that for seams",
        "float32 on cpu, 1 process",
        "75.0% old",
        "25.0% new",
        "scored: 512 tokens, measured every 4,000 tokens",
        "that of base or at most 0.01 nats above",
    ):
        assert part in told


def test_every_stage_has_a_schema_of_its_own_with_a_description_for_each_key() -> None:
    for schema in (training.Pretrain, training.Sft, training.Dpo):
        assert all(field.description for field in schema.model_fields.values())


def test_resources_follow_what_trains(resolve: Callable[..., Experiment]) -> None:
    from strata.resources import DAY, request

    def asked(says: str, parent: str = "pro", device: str = "cpu", stage: str = "pretrain") -> Any:
        job = resolve(stage, says, parent, device=device).variants["x"].job
        large = experiment.schema.Shape(
            family="llama", layers=6, parameters=8_000_000_000, bytes=16_000_000_000, dtype="bfloat16", hidden=4096,
        )  # fmt: skip
        share = (job.trained or 0) / (job.shape.parameters if job.shape else 1)
        return request(Job(job.recipe, large, processes=job.processes, trained=round(share * large.parameters)))

    whole, new = asked(PRETRAIN), asked(f"{PRETRAIN}, train: new")
    assert whole.mem_mb > 16 * 8_000 > new.mem_mb - 28 * 8_000 * 40 / 140
    assert (whole.gpu, whole.processes) == (0, 1)
    assert whole.disk_mb > 16_000 + 3 * 12 * 8_000 > new.disk_mb  # two snapshots stand while a third is written
    many = asked(f"{PRETRAIN}, processes: 4", device="cuda")
    assert (many.gpu, many.processes) == (4, 4)
    assert many.runtime <= asked(PRETRAIN, device="cuda").runtime < whole.runtime <= DAY
    assert asked(f"{PRETRAIN}, activation_checkpointing: true").mem_mb < whole.mem_mb
    assert asked(DPO, stage="dpo").mem_mb > whole.mem_mb  # four times as many samples at once, of two members each
