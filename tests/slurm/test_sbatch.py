"""The exact `sbatch` line of every rule through the shipped profile, on a CPU, on GPUs and on two nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from standin import options, rule, submit

from conftest import write_experiment, write_lessons

SMALL = "length: 64, batch: 2, learning_rate: 2.0e-3"
VARIANTS = f"""\
  base: {{init: {{source: m}}}}
  pruned: {{parent: base, merge: {{method: prune, least: 1, by: block_influence, calibration: {{source: diary, documents: 1, tokens: 32}}}}}}
  mixed: {{parent: base, merge: {{method: layers, layers: [0, {{linear: [1, 2]}}, 3]}}}}
  healed: {{parent: pruned, pretrain: {{data: {{diary: 1}}, tokens: 2560, {SMALL}}}}}
  tuned: {{parent: healed, sft: {{data: [rows], template: solar, epochs: 1, length: 128, batch: 16%s}}}}
  aligned: {{parent: tuned, dpo: {{data: [pairs], template: own, length: 128, batch: 16%s}}}}
"""


def experiment(folder: Path, llama: Path, device: str = "cpu", sft: str = "", dpo: str = "") -> Path:
    """Every operation once. `sft` and `dpo` are added to the settings of those two."""
    variants = VARIANTS % (sft, dpo)
    write_experiment(folder, llama, variants)
    (folder / "diary").mkdir()
    (folder / "diary" / "0.txt").write_text(" ".join(f"On day {day} I counted {day * 3} ants." for day in range(60)))
    sources = write_lessons(folder)
    text = (folder / "config.yaml").read_text().replace("variants:", f"{sources}variants:", 1)
    (folder / "config.yaml").write_text(f"device: {device}\n{text}")
    return folder


def lines(folder: Path) -> dict[str, str]:
    """The line of each rule; of a rule with several jobs they are one line."""
    output, asked = submit(folder, "--until", "evaluate")
    found: dict[str, set[str]] = {}
    for words in asked:
        found.setdefault(rule(words), set()).add(options(words))
    assert "Complete log" in output and "Error" not in output, output
    return {name: one for name, (one,) in sorted(found.items())}


def test_on_a_cpu_each_rule_asks_for_one_task_with_threads_memory_and_time(tmp_path: Path, llama: Path) -> None:
    ask = "--requeue --ntasks=1 --cpus-per-task"
    train = "--nodes=1 --requeue --ntasks=1 --cpus-per-task=4 --signal=TERM@300"
    assert lines(experiment(tmp_path, llama)) == {
        "init": f"-t 20 --mem 2500 {ask}=1",
        "analyze": f"-t 30 --mem 2500 {ask}=1",
        "merge": f"-t 20 --mem 900 {ask}=1",
        "tokenize": f"-t 120 --mem 3000 {ask}=4",
        "reference": f"-t 30 --mem 3004 {ask}=1",
        "pretrain": f"-t 30 --mem 3003 {train}",
        "sft": f"-t 31 --mem 3030 {train}",
        "dpo": f"-t 31 --mem 3058 {train}",
        "encode": f"-t 80 --mem 3000 {ask}=2",
        "evaluate": f"-t 100 --mem 3000 {ask}=1",
    }


def test_on_gpus_only_what_runs_a_model_asks_for_them_and_two_nodes_for_the_same_on_each(
    tmp_path: Path, llama: Path
) -> None:
    folder = experiment(tmp_path, llama, "cuda", ", processes: 8", ", processes: 16, nodes: 2")
    ask, gpu = "--requeue --ntasks=1 --cpus-per-task", "--requeue --cpus-per-task=1 --gpus=1"
    assert lines(folder) == {
        "init": f"-t 20 --mem 2500 {ask}=1",
        "analyze": f"-t 30 --mem 2500 {gpu}",
        "merge": f"-t 20 --mem 900 {ask}=1",
        "tokenize": f"-t 120 --mem 3000 {ask}=4",
        "reference": f"-t 30 --mem 3000 {gpu}",
        "pretrain": "-t 30 --mem 3000 --nodes=1 --requeue --cpus-per-task=4 --signal=TERM@300 --gpus=1",
        "sft": "-t 30 --mem 24000 --nodes=1 --requeue --cpus-per-task=32 --signal=TERM@300 --gpus=8",
        "dpo": "-t 30 --mem 24000 --nodes=2 --requeue --ntasks-per-node=8 --cpus-per-task=4 --signal=TERM@300 --gres=gpu:8",
        "encode": f"-t 80 --mem 3000 {ask}=2",
        "evaluate": f"-t 100 --mem 3000 {gpu}",
    }


def test_merges_that_copy_run_where_snakemake_runs(tmp_path: Path, llama: Path) -> None:
    """A sweep of a hundred submits 103 jobs, not 203. With one merge that averages weights, as above, all are submitted."""
    write_experiment(tmp_path, llama)
    output, asked = submit(tmp_path, "--until", "merge", runs=True)
    assert [rule(words) for words in asked] == ["init"], output
    assert len(list((tmp_path / "results/checkpoints").glob("merge-*.json"))) == 2


def test_with_one_merge_that_averages_all_of_a_sweep_are_submitted(tmp_path: Path, llama: Path) -> None:
    """A base, eleven merges, what the suite asks as tokens, and an evaluation of each of twelve."""
    merges = "".join(
        f"  v{drop}{group}: {{parent: base, merge: {{method: interlocked, drop: {drop}, group: {group}}}}}\n"
        for drop, group in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    )
    mixed = "  mixed: {parent: base, merge: {method: layers, layers: [0, {linear: [1, 2]}, 3]}}\n"
    write_experiment(tmp_path, llama, f"  base: {{init: {{source: m}}}}\n{merges}{mixed}")
    output, asked = submit(tmp_path, "--until", "evaluate")
    counts = Counter(rule(words) for words in asked)
    assert counts == {"init": 1, "merge": 11, "encode": 1, "evaluate": 12}, output


def test_no_log_of_a_job_has_the_environment_with_its_tokens(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under --verbose the plugin would write it there."""
    token = "hf_" + "Zq7" * 10
    monkeypatch.setenv("HF_TOKEN", token)
    write_experiment(tmp_path, llama)
    output, asked = submit(tmp_path, "--until", "init", "--verbose", "--slurm-keep-successful-logs", runs=True)
    (log,) = (tmp_path / "results/logs/slurm").rglob("*.log")
    assert len(asked) == 1 and "This job is a group job" in log.read_text(), output  # the plugin's own words are there
    assert token not in output and token not in log.read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
