"""The decisions of the workflow's design, each checked on the rules as they are."""

from __future__ import annotations

import glob
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY, snakemake, tree_sha256, write_experiment

RULES = {
    path.name: path.read_text()
    for path in [REPOSITORY / "Snakefile", *sorted((REPOSITORY / "workflow" / "rules").glob("*.smk"))]
}
PACKAGE = REPOSITORY / "workflow" / "strata"
SOURCE = "\n".join(re.sub(r"#.*", "", text) for text in RULES.values())


@pytest.mark.parametrize(
    "word",
    [
        "directory(",
        "cache:",
        "ancient(",
        "script:",
        "retries:",
        "\ncheckpoint ",
        "notebook:",
        "run:",
        "temp(",
        "protected(",
    ],
)
def test_what_rules_must_not_use(word: str) -> None:
    assert word not in SOURCE


SUBMITTED = (
    "init", "analyze", "screen", "race", "merge", "tokenize", "reference", "pretrain", "sft", "dpo", "encode", "evaluate", "gguf", "quantize",
)  # fmt: skip


def rules() -> dict[str, str]:
    return {m[1]: m[0] for m in re.finditer(r"^rule (\w+):\n(?:(?: .*)?\n)*", SOURCE, re.MULTILINE)}


def test_every_rule_but_all_has_a_log_and_calls_the_package() -> None:
    assert set(rules()) == {"all", "fetch", *SUBMITTED, "links", "variant", "publish", "report"}
    for name, text in rules().items():
        if name != "all":
            assert "log:" in text and f"python -m strata {name}" in text, name


def test_every_submitted_rule_asks_for_its_resources_as_functions() -> None:
    for name in SUBMITTED:
        for resource in ("mem_mb", "runtime", "disk_mb", "gpu"):
            assert f'{resource}=need("{name}", "{resource}")' in rules()[name]
        assert f'threads: threads_of("{name}")' in rules()[name]


def test_how_many_processes_train_is_a_resource_and_no_parameter() -> None:
    """Snakemake reruns a job whose parameters changed; the weights are those of the recipe on any number of GPUs."""
    for name in ("pretrain", "sft", "dpo"):
        resources, parameters = rules()[name].split("params:")
        assert f'processes=need("{name}", "processes")' in resources
        assert "--processes={resources.processes:q}" in parameters and "need(" not in parameters


def test_fetch_and_everything_small_is_local() -> None:
    local = {name for name, text in rules().items() if "localrule: True" in text}
    assert local == {"all", "fetch", "links", "variant", "publish", "report"}


def test_recipes_and_names_are_quoted_in_every_shell_line() -> None:
    for placeholder in re.findall(r"\{[a-z.]+(?::\w)?\}", "".join(re.findall(r'shell:\s*"(.*)"', SOURCE))):
        assert placeholder.endswith(":q}"), placeholder


def test_no_two_rules_may_claim_one_file() -> None:
    prefixes = re.findall(r'"(results/[a-z]+/[a-z]+-)\{hash\}\.json"', SOURCE)
    assert sorted(prefixes) == [
        "results/analyses/analyze-", "results/checkpoints/dpo-", "results/checkpoints/init-", "results/checkpoints/merge-",
        "results/checkpoints/pretrain-", "results/checkpoints/sft-", "results/evaluations/evaluate-",
        "results/gguf/gguf-", "results/gguf/quantize-",
        "results/references/reference-", "results/requests/encode-", "results/screens/race-", "results/screens/screen-", "results/sources/fetch-",
        "results/tokens/tokenize-",
    ]  # fmt: skip
    assert 'hash="[0-9a-f]{32}"' in SOURCE


def test_the_default_profile_sets_no_resources() -> None:
    profile = yaml.safe_load((REPOSITORY / "profiles" / "default" / "profile.yaml").read_text())
    assert profile["rerun-triggers"] == ["mtime", "input", "params"]
    assert profile["rerun-incomplete"] is True
    assert not {"default-resources", "set-resources", "executor", "cores", "jobs", "resources"} & set(profile)


def test_only_rules_know_snakemake() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) snakemake", file.read_text(), re.MULTILINE), file


ORDER = [
    {"errors", "scratch", "splitting"}, {"jsonfile", "document", "plan", "progress", "records", "slots", "slurm", "disk"}, {"lease"},
    {"schema", "methods", "outline", "tensors", "recipe", "families", "modelfiles", "rows"},
    {"surgery", "training", "store", "relayer", "arithmetic", "lineage", "chat"},
    {"screening"}, {"config", "checkpoint", "runs", "importance", "curves", "receipts"}, {"foreign", "mergekit", "job", "architecture"},
    {"variant", "restack", "shapes", "sources", "loading", "setting"}, {"stages", "merges", "tokens", "score", "tasks"},
    {"suite", "encode", "train"}, {"screen"}, {"screens"}, {"experiment"}, {"garbage"},
    {"resources", "links", "initialize", "analyze", "merge", "evaluate", "pin", "standalone", "reference", "forecast"},
    {"llamacpp", "dry_run"}, {"status", "inventory", "operations"}, {"redo"}, {"report"}, {"publish", "talk"}, {"commands"}, {"cli"},
]  # fmt: skip
WITHIN = {
    "train": [
        {"schedule", "groups", "order", "parallel", "flops", "journal", "state", "metadata", "bfloat16"},
        {"batch", "packing", "snapshots", "sharding"}, {"learner"}, {"data", "objectives", "export"}, {"task"}, {"loop", "reference"},
        {"operation"},
    ],
    "score": [{"tree", "statistics", "encodings", "generator"}, {"engine"}, {"answers"}, {"scorer"}],
    "tasks": [{"items", "bigbench", "taskfiles", "splits"}, {"harness"}, {"kinds"}],
    "llamacpp": [{"probes", "vocabulary"}, {"library"}, {"convert"}, {"quantize"}],
    "publish": [{"rebuild"}, {"origin"}, {"card"}, {"folder"}, {"hub"}],
    "report": [
        {"figures", "comparison", "flips", "html"}, {"charts", "table", "ranking", "stacks", "grids", "clouds"},
        {"formats", "results", "published", "places", "screened"}, {"model_index", "every_eval_ever", "beside", "screen_page"},
        {"page", "exports"},
    ],
    "screen": [
        {"walk", "stack"}, {"candidates", "measures"}, {"search", "tried", "texts"}, {"score"}, {"operation", "race"},
    ],
}  # fmt: skip


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, as `store` or `train.loop`."""
    found = set()
    for base, listed in re.findall(r"^\s*from strata(?:\.([\w.]+))? import (.+)$", file.read_text(), re.MULTILINE):
        folder = PACKAGE.joinpath(*base.split(".")) if base else PACKAGE
        names = [name.split()[0] for name in listed.strip("(").split(",") if name.split()]
        parts = [name for name in names if (folder / f"{name}.py").exists()] if folder.is_dir() else []
        found |= {".".join(filter(None, (base, name))) for name in parts} or {base}
    return found


def test_imports_point_one_way() -> None:
    """In the package, where a folder is one, and within each folder."""
    level = {name: number for number, names in enumerate(ORDER) for name in names}
    within = {
        (folder, name): number
        for folder, order in WITHIN.items()
        for number, names in enumerate(order)
        for name in names
    }
    for file in PACKAGE.rglob("[a-z]*.py"):
        top, *rest = file.relative_to(PACKAGE).with_suffix("").parts
        for name in imports(file):
            other, _, inner = name.partition(".")
            if other == top and rest:
                assert within[top, inner] < within[top, rest[0]], f"{top}.{rest[0]} imports {name}"
            else:
                assert level[other] < level[top], f"{file} imports {name}"


@pytest.mark.parametrize(
    "module", ["plan", "recipe", "store", "tensors", "merge", "checkpoint", "experiment", "status", "resources"]
)
def test_torch_numpy_and_pandas_stay_out_of(module: str) -> None:
    code = f"import sys, strata.{module}; print([m for m in ('torch', 'numpy', 'pandas', 'transformers') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert run.stdout == "[]\n", run.stderr


def test_no_file_is_two_things() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 400, file


def test_a_mistake_in_the_config_is_one_message_without_a_traceback(tmp_path: Path, llama: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("drop: 1", "drop: 9", 1))
    run = snakemake(folder, "-n")
    assert run.returncode == 3
    assert "error: `drop` is out of range" in run.stdout
    assert "0 to 3: the parent has 4 layers" in run.stdout
    assert "Traceback" not in run.stdout


def test_duplicate_keys_are_found_although_snakemakes_loader_drops_them(tmp_path: Path, llama: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    with (folder / "config.yaml").open("a") as file:
        file.write("suites: []\n")
    run = snakemake(folder, "-n")
    assert run.returncode == 3
    assert "duplicate key `suites`" in run.stdout


def test_a_config_that_runs_code_is_refused_before_it_runs(tmp_path: Path, llama: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"__use_yte__: true\nx: ?open('ran', 'w').write('x')\n{text}")
    run = snakemake(folder, "-n")
    assert run.returncode == 3
    assert "makes a config run code" in run.stdout
    assert not (folder / "ran").exists()


def test_config_on_the_command_line_is_refused_with_the_way_to_do_it(tmp_path: Path, llama: Path) -> None:
    run = snakemake(write_experiment(tmp_path, llama), "-n", "--config", "device=cuda")
    assert run.returncode == 3
    assert "--configfile" in run.stdout


def test_a_wrong_checksum_stops_the_run_with_its_message_in_the_output(tmp_path: Path, llama: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    (folder / "documents" / "ant.txt").write_text("changed")
    run = snakemake(folder)
    assert run.returncode != 0
    assert "error: wrong checksum" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_recipe_with_every_quote_reaches_its_job(tmp_path: Path) -> None:
    from strata.recipe import Recipe

    nasty = Recipe("fetch", {"package": "x==1", "file": "a'b\"c $(touch pwned) `d` {e} \\ é"})
    assert Recipe.from_json(json.loads(json.dumps(nasty.canonical))) == nasty


def test_names_with_every_quote_go_through_snakemake_and_a_shell_as_they_are(tmp_path: Path, llama: Path) -> None:
    """The folder of a source, and the pattern of its files, which its recipe has."""
    folder = write_experiment(tmp_path, llama)
    documents = (folder / "documents").rename(folder / 'it\'s "x" $(touch pwned) `touch pwned` {input} é')
    pattern = "n'o\"t $(touch pwned) `touch pwned` {hash}.txt"
    for name in ("ant", "bee", "cow"):
        (documents / f"{name}.txt").rename(documents / f"{name} {pattern}")
    pin = {"path": str(documents), "file": f"* {pattern}", "sha256": tree_sha256(documents)}
    lines = (folder / "tiny.yaml").read_text().splitlines(keepends=True)
    suite = (f"  notes: {json.dumps(pin)}\n" if line.startswith("  notes:") else line for line in lines)
    (folder / "tiny.yaml").write_text("".join(suite))
    run = snakemake(folder, "--until", "fetch")
    assert run.returncode == 0, run.stdout
    assert len(list((folder / "results/sources").glob(f"fetch-*/files/* {glob.escape(pattern)}"))) == 3
    assert not list(folder.rglob("pwned"))
