# What the rules share: the experiment, resolved once from the config files, and functions of a job's hash.
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir, "workflow")))

from strata import experiment as experiments
from strata.config import config_files as given_files
from strata.errors import ClusterError, StoreError, StrataError
from strata.garbage import mark
from strata.recipe import digest
from strata.resources import ACROSS, across, request
from strata.slurm import watch
from strata.status import variant_of
from strata.store import target

RESULTS = Path("results")
STARTED = time.time()
ENDED_BY, LAST_LOOKS = [], []


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
            got=", ".join(settings.config),
            todo="write them into a second file and add `--configfile config.yaml second.yaml`",
        )
    return given_files(settings.configfiles, settings.replace_workflow_config)


try:
    CONFIG_FILES = config_files()
    EXPERIMENT = experiments.load(CONFIG_FILES)
except StrataError as error:
    refuse(error)


# An object that was deleted by hand while its manifest copy stayed: Snakemake would go on believing in the copy.
def refuse_if_gone():
    copies = {id: target(RESULTS, id) for id in EXPERIMENT.jobs}
    gone = [id for id, copy in copies.items() if copy.exists() and not copy.with_suffix("").is_dir()]
    if gone:
        todo = "run `strata verify`, then again"
        refuse(StoreError("objects are gone from the store", got=", ".join(gone[:5]), todo=todo))


if workflow.is_main_process:
    refuse_if_gone()

NAMES = {}
for variant in EXPERIMENT.variants.values():
    for job in variant.jobs:
        NAMES.setdefault(job.id, []).append(variant.name)

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
                "no variant of this config needs that id", got=id, todo="ask for results/variants/NAME.json instead"
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
    """The manifest copies of a variant's checkpoint and evaluations."""
    variant = EXPERIMENT.variants[name]
    return [str(target(RESULTS, job.id)) for job in (variant.job, *variant.evaluations)]


def results_of_variant(wildcards):
    try:
        return results_of(variant_of(EXPERIMENT, wildcards.name).name)
    except StrataError as error:
        refuse(error)


def all_results():
    return list(dict.fromkeys(path for name in EXPERIMENT.variants for path in results_of(name)))


def all_checkpoints():
    return list(dict.fromkeys(str(target(RESULTS, variant.job.id)) for variant in EXPERIMENT.variants.values()))


def names_digest():
    """Changes whenever a name, its checkpoint or its evaluations do: the report and the links follow it."""
    return digest(repr([(name, results_of(name)) for name in EXPERIMENT.variants]))


def keep_what_is_needed():
    """Keep what this run needs from `strata store gc`; then see that what it builds on has not just been collected."""
    mark(RESULTS, CONFIG_FILES, EXPERIMENT)
    refuse_if_gone()


def require_scheduler():
    """Refuse a run on Slurm where there is no Slurm, before anything is submitted."""
    if workflow.executor_plugin.name == "slurm" and shutil.which("sbatch") is None:
        refuse(
            ClusterError(
                "this profile submits to Slurm, and there is no `sbatch` on this machine",
                where="PATH",
                expected="sbatch",
                todo="run it on a login node of the cluster, or without `--profile slurm`",
            )
        )


def watch_cluster():
    """See to it that a run on Slurm does not wait for a job that will not come back."""

    def end(error):
        ENDED_BY.append(error)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: Snakemake cancels its other jobs

    if workflow.executor_plugin.name == "slurm":
        ask = ["sacct", "-n", "-X", "--name", "none"]
        if shutil.which("sacct") and subprocess.run(ask, capture_output=True, check=False).returncode:
            forget_sacct()
        LAST_LOOKS.append(watch(Path.cwd(), lambda text: print(text, file=sys.stderr), end))


def forget_sacct():
    """Where there is no accounting: the plugin asks sacct when the controller is slow, and loses all jobs by its error."""
    import snakemake_executor_plugin_slurm as plugin

    is_there = plugin.is_query_tool_available
    plugin.is_query_tool_available = lambda tool: tool != "sacct" and is_there(tool)


def say_where_the_report_is():
    """At the end of a run that wrote the report. One that did not must not point at an older one."""
    page = RESULTS / "report" / "report.html"
    if page.exists() and page.stat().st_mtime >= STARTED:
        print(f"report: {page.resolve()}", file=sys.stderr)


def report_what_there_is():
    """At the end of a run that failed: a report of the variants that are finished, beside the last whole one."""
    for look in LAST_LOOKS:
        look()
    print("The report was not written again. Mend what failed above and run the same command.", file=sys.stderr)
    command = [sys.executable, "-m", "strata", "report", "--partial", "--configfile", *CONFIG_FILES]
    path = {"PYTHONPATH": str(Path(workflow.basedir, "workflow"))}
    run = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
    print((run.stdout or run.stderr).strip(), file=sys.stderr)
    if ENDED_BY:
        refuse(ENDED_BY[0])
