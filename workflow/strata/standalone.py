"""`strata merge FILE.yaml OUT`: a mergekit file built into a folder of its own, beside the workflow and its store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from strata import families
from strata.checkpoint import Checkpoint, copy_tokenizer, write_config
from strata.disk import disk_errors
from strata.errors import SourceError, UsageError
from strata.foreign import open_model
from strata.mergekit import plan_of, read_request
from strata.modelfiles import check_tokenizer, find_model
from strata.outline import outline
from strata.restack import Draft, draft, write
from strata.scratch import scratch_folder, sweep

PROVENANCE = "strata.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model")


def merge_file(file: Path, out: Path | None, root: Path, configs: Sequence[str]) -> str:
    """Build what a mergekit file asks for into the new folder `out`. Returns its plan in words.

    A model is a folder, or a name from the config's `sources:`, which is fetched into the store under `root`.

    Raises:
        ConfigError: the file is not one that Strata takes, or its ranges do not fit the models.
        SourceError: a model that is not there or cannot be used.
        CheckpointError: models that do not fit together. Nothing has been written then.
        UsageError: `out` is there already.
    """
    request = read_request(file)
    if out is not None and (out.is_symlink() or out.exists()):
        raise UsageError(
            "the output is there already",
            where=out,
            expected="nothing there",
            got="a folder or a file",
            todo="name a new folder, or remove it",
        )
    names = request.file.names
    models = {name: open_model(_locate(name, file, root, configs)) for name in names}
    plan = plan_of(request, models)
    if request.file.tokenizer_source:
        _check_tokenizers(list(models.values()))
    made = draft(plan, list(models.values()), request.dtype, lender=0)  # the base model, or the first that is named
    lender = made.parents[made.lender]
    if (lender.path / "tokenizer_config.json").is_file():
        check_tokenizer(lender.path, families.size(lender.config, "vocab_size"))
    told = "\n".join([f"{len(plan.layers)} layers", *(f"  {line}" for line in outline(made.plan, names))])
    if out is None:
        return told
    with disk_errors(out.parent, "the folder"):
        rounding = _publish(out, made, list(models))
    changed = f"\nchange of dtype: largest relative error {rounding:.2g}" if rounding else ""
    return f"{told}{changed}\nwritten to {out}"


def _locate(name: str, file: Path, root: Path, configs: Sequence[str]) -> Path:
    """The config.json of a model: of a folder, or else of a source of the config."""
    if (Path(name) / "config.json").is_file():
        return Path(name) / "config.json"
    # Not needed, and 10 MB of memory, where all models are folders.
    from strata import config as schema
    from strata import experiment
    from strata.job import Job
    from strata.sources import FILES, fetch

    sources: dict[str, Job] = {}
    if configs and (configs != ["config.yaml"] or Path("config.yaml").is_file()):
        config, document = schema.load(configs)
        if name in config.sources:
            sources[name] = experiment.fetch_job(config.sources[name], document, ("sources", name))
    if name not in sources:
        raise SourceError(
            "no such model", where=file, got=name,
            expected="a folder with config.json, or a name in the config's `sources:`",
            todo="merge the adapter into its model first: LoRA is not applied here" if "+" in name
            else "models on a hub are declared in `sources:` and pinned with `strata pin`",
        )  # fmt: skip
    fetched = fetch(root, sources[name].recipe, sources[name].location)
    model = find_model(fetched.path / FILES)
    if model is None or model.suffix == ".gguf":
        raise SourceError(
            "not a model in safetensors", where=name, expected="config.json and safetensors", got=model or "no model",
            todo="make a variant of it with `init`, and name its folder, results/variants/NAME",
        )  # fmt: skip
    return model


def _check_tokenizers(models: Sequence[Checkpoint]) -> None:
    """With one vocabulary, whichever tokenizer is asked for is the same; building a union is not done here."""
    contents = {
        tuple((model.path / name).read_bytes() for name in VOCABULARIES if (model.path / name).is_file())
        for model in models
    }
    if len(contents) > 1:
        raise SourceError(
            "the models' tokenizers differ", where="tokenizer_source", expected="one tokenizer",
            got=f"{len(contents)}: {', '.join(VOCABULARIES)} are not the same",
            todo="leave `tokenizer_source` out: the tokenizer is the base model's, or that of the first model named",
        )  # fmt: skip


def _publish(out: Path, made: Draft, names: Sequence[str]) -> float:
    """Write everything aside, then give it its name. Returns the largest relative error of a change of dtype."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent, f".{out.name}")
    scratch = scratch_folder(out.parent, f".{out.name}")
    try:
        _, rounding = write(scratch, made, "merge", stored=False)
        write_config(scratch, made.config, made.shards)
        copy_tokenizer(made.parents[made.lender], scratch)
        provenance = {"plan": made.plan.to_json(), "models": list(names)}
        (scratch / PROVENANCE).write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return rounding
