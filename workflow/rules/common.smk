# What the rules share: the experiment, resolved once from the config files, and functions of a job's hash.
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from strata import __version__ as VERSION
from strata import experiment as experiments
from strata.config import config_files as given_files
from strata.config import load as load_config
from strata.errors import StoreError, StrataError
from strata.publish.origin import own_config
from strata.recipe import digest
from strata.resources import ACROSS, across, request
from strata.status import base_of, variant_of
from strata.store import target

RESULTS = Path("results")


def refuse(error):
    """Say what is wrong, with the error's own exit code and without a traceback."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def config_files():
    """The files that Snakemake's `configfile:` and `--configfile` read; read again, as its loader drops duplicates."""
    settings = workflow.config_settings
    if settings.config:
        raise experiments.ConfigError(
            "--config is not supported: its values lose their types",
            where="the command line",
            expected="values in files",
            got=", ".join(settings.config),
            todo="write them into a second file and add `--configfile config.yaml second.yaml`",
        )
    return given_files(settings.configfiles, settings.replace_workflow_config)


try:
    CONFIG_FILES = config_files()
    LOADED = load_config(CONFIG_FILES)
    EXPERIMENT = experiments.resolve(*LOADED)
except StrataError as error:
    refuse(error)


# The manifest copies that Snakemake will believe in.
COPIES = [target(RESULTS, id) for id in EXPERIMENT.jobs] if workflow.is_main_process else []
THERE = [copy for copy in COPIES if copy.exists()]


# An object that was deleted by hand while its manifest copy stayed, or collected since Snakemake saw the copy.
def refuse_if_gone():
    gone = [copy.stem for copy in THERE if not copy.with_suffix("").is_dir()]
    if gone:
        todo = "remove the .json files of these names, or run `strata verify`, which does; then again"
        expected, got = "a folder for each manifest copy", "none for " + ", ".join(gone[:20])
        refuse(StoreError("objects are gone from the store", where=RESULTS, expected=expected, got=got, todo=todo))


refuse_if_gone()

NAMES = {}
for variant in EXPERIMENT.variants.values():
    for job in variant.jobs:
        NAMES.setdefault(job.id, []).append(variant.name)
for screen in EXPERIMENT.screens.values():
    for job in screen.jobs:
        NAMES.setdefault(job.id, []).append(screen.name)

# The package beside this Snakefile and the interpreter that runs Snakemake serve every job, here and on a node.
shell.executable("bash")
shell.prefix(
    f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    f"PYTHONPATH={shlex.quote(str(Path(workflow.basedir, 'workflow')))}; "
)


wildcard_constraints:
    hash="[0-9a-f]{32}",
    name="[a-z0-9][a-z0-9_-]{0,63}",


def job_of(operation, wildcards):
    """The job of an id that is part of this experiment."""
    id = f"{operation}-{wildcards.hash}"
    if id not in EXPERIMENT.jobs:
        refuse(
            experiments.ConfigError(
                "no variant of this config needs that id",
                where="the target",
                expected="an id that `strata show NAME` tells",
                got=id,
                todo="ask for results/variants/NAME.json instead",
            )
        )
    return EXPERIMENT.jobs[id]


def inputs(operation):
    """The manifest copies of a job's sources and parents."""

    def of(wildcards):
        recipe = job_of(operation, wildcards).recipe
        return [str(target(RESULTS, id)) for id in (*recipe.sources, *recipe.parents)]

    return of


def recipe(operation):
    """The recipe as one canonical JSON text: Snakemake compares parameters as an unordered set of values."""
    return lambda wildcards: job_of(operation, wildcards).recipe.canonical


def location(wildcards):
    """Where a local source lies; empty for any other. No parameter: a moved file with the same pin is the same source."""
    return job_of("fetch", wildcards).location


def need(operation, resource):
    """One resource of a job, growing with `attempt`."""
    return lambda wildcards, attempt: getattr(request(job_of(operation, wildcards), attempt), resource)


def across_nodes(operation):
    """What Slurm is told of a job on several nodes; unset on one."""

    def one(name):
        return lambda wildcards, attempt: across(request(job_of(operation, wildcards), attempt))[name]

    return {name: one(name) for name in ACROSS}


def merges_are_copies():
    """Whether every merge moves bytes and computes nothing. A sweep has hundreds, each shorter than its place in a queue."""
    merges = [v for v in EXPERIMENT.variants.values() if v.job.recipe.operation == "merge"]
    return all((v.plan is None or v.plan.is_bytes) and "dtype" not in v.job.recipe.parameters for v in merges)


def names_of(operation):
    """The variants that a job builds or scores, for whoever reads Snakemake's output. Not a parameter: a rename
    must not run it again."""
    return lambda wildcards: ",".join(NAMES[job_of(operation, wildcards).id])


def threads_of(operation):
    return lambda wildcards: request(job_of(operation, wildcards)).threads


def results_of(name):
    """The manifest copies of a variant's checkpoint, evaluations and GGUF files."""
    variant = EXPERIMENT.variants[name]
    return [str(target(RESULTS, job.id)) for job in (variant.job, *variant.evaluations, *variant.ggufs)]


def known(wildcards):
    """The name of a variant that is asked for, of which there is one."""
    try:
        return variant_of(EXPERIMENT, wildcards.name).name
    except StrataError as error:
        refuse(error)


def results_of_variant(wildcards):
    return results_of(known(wildcards))


def all_results():
    """The manifest copies of all variants' results, and of all screens and races."""
    paths = [path for name in EXPERIMENT.variants for path in results_of(name)]
    return list(dict.fromkeys([*paths, *all_screens()]))


def all_screens():
    return [str(target(RESULTS, job.id)) for screen in EXPERIMENT.screens.values() for job in screen.rankings]


def results_to_publish(wildcards):
    """What a variant's card tells of: itself, and its base, which its scores are held against."""
    name = known(wildcards)
    names = dict.fromkeys([name, base_of(EXPERIMENT, name)])
    return list(dict.fromkeys(path for name in names for path in results_of(name)))


def card_digest(wildcards):
    """Changes with what a variant's card tells beside its results: of the config, such as a licence, and of Strata."""
    return digest(own_config(EXPERIMENT, LOADED[1], wildcards.name) + VERSION)


def all_published():
    """What stands for the variants that are written into folders of their own."""
    return [f"results/published/.{name}.done" for name, v in EXPERIMENT.variants.items() if v.publish.directory]


def all_checkpoints():
    return list(dict.fromkeys(str(target(RESULTS, variant.job.id)) for variant in EXPERIMENT.variants.values()))


def names_digest():
    """Changes whenever a name, its checkpoint or its evaluations do: the report and the links follow it."""
    screens = [(screen.name, [job.id for job in screen.rankings]) for screen in EXPERIMENT.screens.values()]
    return digest(repr([(name, results_of(name)) for name in EXPERIMENT.variants] + screens))
