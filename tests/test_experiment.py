"""The config as recipes: ids known before a weight is read, and mistakes found before a job starts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import REPOSITORY
from strata import experiment
from strata.errors import ConfigError, SourceError

Write = Callable[..., Path]
SHAPE = "{family: llama, layers: 30, parameters: 134515008, bytes: 269030016, dtype: bfloat16}"
SHA = "a" * 64


def text(variants: str, source: str = f"{{path: model, sha256: {SHA}, shape: {SHAPE}}}") -> str:
    return f"sources:\n  m: {source}\nvariants:\n  base: {{init: {{source: m, architecture: llama}}}}\n{variants}"


DUS = "  dus: {parent: base, merge: {method: dus, drop: 6}}\n"


def test_a_chain_of_variants_gets_its_depths(write_config: Write) -> None:
    twice = "  twice: {parent: dus, merge: {method: interlocked, drop: 40, group: 2}}\n"
    loaded = experiment.load([write_config(text(twice + DUS))])
    assert {name: v.job.shape.layers for name, v in loaded.variants.items() if v.job.shape} == {
        "base": 30,
        "twice": 16,
        "dus": 48,
    }
    assert loaded.variants["twice"].job.recipe.parents == (loaded.variants["dus"].job.id,)


def test_two_variants_with_one_recipe_are_one_job(write_config: Write) -> None:
    loaded = experiment.load([write_config(text(DUS + DUS.replace("dus:", "same:", 1)))])
    assert loaded.variants["dus"].job.id == loaded.variants["same"].job.id
    assert sum(id.startswith("merge-") for id in loaded.jobs) == 1


def test_names_order_paths_and_comments_are_not_part_of_an_id(write_config: Write) -> None:
    one = experiment.load([write_config(text(DUS))])
    other = (
        text("  x: {merge: {drop: 6, method: dus}, parents: [b]}\n")
        .replace("base:", "b:")
        .replace("path: model", "path: /moved")
    )
    two = experiment.load([write_config("# a comment\n" + other)])
    assert set(one.jobs) == set(two.jobs)


def test_a_change_touches_only_what_rests_on_it(write_config: Write) -> None:
    other = "  idus: {parent: base, merge: {method: interlocked, drop: 6, group: 6}}\n"
    one = experiment.load([write_config(text(DUS + other))]).variants
    two = experiment.load([write_config(text(DUS.replace("6", "8") + other))]).variants
    assert one["dus"].job.id != two["dus"].job.id
    assert (one["base"], one["idus"]) == (two["base"], two["idus"])


def test_a_local_path_is_told_to_its_job_but_is_not_in_the_recipe(write_config: Write) -> None:
    source = experiment.load([write_config(text(DUS))]).sources["m"]
    assert source.location == "model"
    assert "model" not in source.recipe.canonical


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ("  a: {parent: bsae, merge: {method: dus, drop: 1}}\n", ["has a parent that does not exist", "config.yaml:5, variants.a.parent", "bsae"]),
        ("  a: {parent: a, merge: {method: dus, drop: 1}}\n", ["`a` is its own ancestor", "a <- a"]),
        ("  a: {parent: b, merge: {method: dus, drop: 1}}\n  b: {parent: a, merge: {method: dus, drop: 1}}\n", ["own ancestor", "a <- b <- a"]),
        ("  a: {parent: base, merge: {method: dus, drop: 30}}\n", ["`drop` is out of range", "variants.a.merge.drop", "0 to 29", "30 layers", "got:      30"]),
        ("  a: {parent: base, merge: {method: interlocked, drop: 6, group: 25}}\n", ["`group` is out of range", "variants.a.merge.group", "1 to 24", "got:      25"]),
        ("  a: {init: {source: nope}}\n", ["no such source", "variants.a.init.source", "nope"]),
    ],
)  # fmt: skip
def test_a_variant_that_cannot_be_is_told_where_and_why(
    write_config: Write, variants: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment.load([write_config(text(variants))])
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{path: model}", ["`m` is not pinned", "a sha256", "strata pin"]),
        ("{package: x==1, file: y}", ["`m` is not pinned", "a sha256"]),
        ("{hub: a/b}", ["`m` is not pinned", "revision of 40 hex digits"]),
        ("{hub: a/b, revision: main}", ["`m` is not pinned", "'main'"]),
        (f"{{path: model, sha256: {SHA}}}", ["`m` has no shape", "strata pin"]),
    ],
)  # fmt: skip
def test_a_source_without_a_pin_or_shape_is_an_error_that_says_so(
    write_config: Write, source: str, expected: list[str]
) -> None:
    with pytest.raises(SourceError) as caught:
        experiment.load([write_config(text(DUS, source))])
    for part in expected:
        assert part in str(caught.value)


def test_a_suite_that_does_not_exist_names_those_that_do(write_config: Write) -> None:
    with pytest.raises(ConfigError, match="quick"):
        experiment.load([write_config(text(DUS) + "suites: [quik]\n")])


def test_suites_are_called_as_their_files_and_no_two_alike(write_config: Write, tmp_path: Path) -> None:
    """A copied suite that kept its name would put its scores under the first one's."""
    quick = (REPOSITORY / "workflow" / "suites" / "quick.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(quick)
    config = text(DUS) + f"suites: [quick, {tmp_path / 'mine.yaml'}]\n"
    with pytest.raises(ConfigError, match="called as its file is"):
        experiment.load([write_config(config)])
    (tmp_path / "quick.yaml").write_text(quick)
    with pytest.raises(ConfigError, match="two suites of one name"):
        experiment.load([write_config(config.replace("mine", "quick"))])
    (tmp_path / "mine.yaml").write_text(re.sub("sha256: .*", "", quick.replace("suite: quick", "suite: mine")))
    with pytest.raises(SourceError, match=r"strata pin --suite .*mine\.yaml"):
        experiment.load([write_config(config)])
    (tmp_path / "mine.yaml").write_text(quick.replace("suite: quick", "suite: mine"))
    assert len(experiment.load([write_config(config)]).variants["dus"].evaluations) == 2


def test_a_chain_of_thousands_is_no_recursion(write_config: Write) -> None:
    chain = "".join(f"  v{n}: {{parent: v{n + 1}, merge: {{method: dus, drop: 15}}}}\n" for n in range(3000))
    loaded = experiment.load([write_config(text(chain + "  v3000: {parent: base, merge: {method: dus, drop: 15}}\n"))])
    assert len(loaded.variants) == 3002


# What was built keeps its ids: they change with the version of an operation or a suite, and with nothing else.
BUILT = {
    "base": "init-a6ed3a01300d8e9b8bbde4c4dd930d69 evaluate-59339dd5477fcbdf9e71f5874ec59ef9",
    "dus": "merge-d6a11e1bcf0d66e28a5110213270c4f9 evaluate-35ec064c7f8e49562eb27d60234c1bcc",
    "idus-6": "merge-4cdb4411c8136fd0de15839876fcb0f8 evaluate-61de1cfe8a4fd82123a670e3fbfe0fd1",
    "screened": "merge-2f2739031dfd3ea72ce86cb1b718a498 evaluate-dab0207ef6c833ee7b8d973bd2f4df56",
}


def test_the_ids_of_the_default_experiment_have_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    variants = experiment.load(["config.yaml"]).variants
    for name, ids in BUILT.items():
        found = variants[name]
        assert " ".join([found.job.id, *(job.id for job in found.evaluations)]) == ids


DATA = "".join(f"  {name}: {{path: {name}, sha256: {sha * 64}}}\n" for name, sha in (("old", "b"), ("new", "c")))
LEARN = "pretrain: {data: {old: 1}, tokens: 10_000%s}"
RECOVER = LEARN % ", heldout: {source: new}, stop: {recovered: %s}"


def trained(variants: str, more: str = "") -> str:
    return text(variants).replace("variants:", f"{DATA}{more}variants:")


def test_a_variant_to_get_back_to_is_resolved_first_and_is_no_parent(write_config: Write) -> None:
    """It stands last in the config, is trained itself, and is an input of the job."""
    healed = "  healed: {parent: dus, %s}\n" % (RECOVER % "control")
    loaded = experiment.load([write_config(trained(healed + DUS + "  control: {parent: base, %s}\n" % (LEARN % "")))])
    job, control = loaded.variants["healed"].job, loaded.variants["control"].job
    assert list(loaded.variants)[1:4] == ["healed", "dus", "control"]
    assert job.recipe.sources[job.recipe.parameters["stop"]["recovered"]] == control.id
    assert job.recipe.parents == (loaded.variants["dus"].job.id,)
    assert loaded.variants["healed"].parents == ("dus",)


def test_variants_that_wait_for_each_other_are_refused_where_one_names_the_others_loss(write_config: Write) -> None:
    a, b = "  a: {parent: base, %s}\n" % (RECOVER % "b"), "  b: {parent: a, merge: {method: dus, drop: 1}}\n"
    for variants in (a + b, b + a):
        with pytest.raises(ConfigError) as caught:
            experiment.load([write_config(trained(variants))])
        for part in (
            "`a` is to get back to the loss of a variant that is made after it",
            "variants.a.pretrain.stop.recovered",
        ):
            assert part in str(caught.value)
    own = "  a: {parent: a, %s}\n" % (RECOVER % "a")
    with pytest.raises(ConfigError, match="`a` is its own ancestor"):
        experiment.load([write_config(trained(own))])


def test_tokens_are_those_of_the_base_whose_tokenizer_came_down(write_config: Write) -> None:
    """Through merges, the parent that lends the embedding lends the tokenizer; training keeps its parent's."""
    layers = "slices, slices: [{parent: base, layers: [0, 9]}, {parent: other, layers: [9, 12]}]"
    variants = f"""\
  other: {{init: {{source: o}}}}
  mixed: {{parents: [base, other], merge: {{method: {layers}}}}}
  lent: {{parents: [base, other], merge: {{method: {layers}, embed_from: other}}}}
  deeper: {{parent: lent, merge: {{method: dus, drop: 2}}}}
  one: {{parent: mixed, {LEARN % ""}}}
  two: {{parent: deeper, {LEARN % ""}}}
  three: {{parent: two, sft: {{data: [new], template: own}}}}
"""
    other = f"  o: {{path: o, sha256: {'d' * 64}, shape: {SHAPE}}}\n"
    found = experiment.load([write_config(trained(variants, other))]).variants
    tokenizers = {name: found[name].preparations[0].recipe.parents[0] for name in ("one", "two", "three")}
    lender = found["other"].job.id
    assert tokenizers == {"one": found["base"].job.id, "two": lender, "three": lender}


def test_an_evaluation_of_a_trained_lineage_knows_what_was_learnt(write_config: Write) -> None:
    """Of every ancestor, through merges, and not what was held out; what was never trained keeps its id."""
    held = LEARN % ", heldout: {source: new}"
    variants = f"""\
{DUS}  a: {{parent: dus, {held}}}
  b: {{parent: dus, pretrain: {{data: {{new: 1}}, tokens: 10_000}}}}
  blend: {{parents: [a, b], merge: {{method: slerp}}}}
  deep: {{parent: blend, merge: {{method: dus, drop: 1}}}}
"""
    found = experiment.load([write_config(trained(variants))]).variants
    old, new = (found[name].preparations[0].id for name in ("a", "b"))
    learnt = {name: [s for s in found[name].evaluations[0].recipe.sources if s.startswith("tok")] for name in found}
    assert learnt == {
        "base": [], "dus": [], "a": [old], "b": [new], "blend": sorted([old, new]),
        "deep": sorted([old, new]),
    }  # fmt: skip
    plain = experiment.load([write_config(text(DUS))]).variants["dus"]
    assert found["dus"].evaluations == plain.evaluations


def test_it_is_pure_no_torch_no_network_no_writes(write_config: Write, tmp_path: Path) -> None:
    file = write_config(text(DUS))
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import socket, sys\ndef no(*a, **k): raise SystemExit('network')\nsocket.socket = no\n"
        f"from strata import experiment; experiment.load([{str(file)!r}])\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'lm_eval', 'requests') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert run.stdout == "[]\n", run.stderr
    assert sorted(tmp_path.rglob("*")) == before
