# The beginning and the end of a run: what it keeps from garbage collection, its watch over Slurm, its last words.
import logging
import os
import shutil
import signal
import subprocess
import threading
import time

from strata.disk import disk_errors, unusable
from strata.errors import ClusterError
from strata.garbage import mark, sweep_dead
from strata.llamacpp import library as llama
from strata.slurm import check_job_age, watch

STARTED = time.time()
ENDED_BY, LAST_LOOKS = [], []

# Under --verbose, Slurm's plugin writes the whole environment of a job into its log, with every token in it.
logging.getLogger("snakemake.logging").addFilter(lambda record: not str(record.msg).startswith("environment: "))


def tell(text):
    print(text, file=sys.stderr)


def keep_what_is_needed():
    """Clear away what dead runs left. Keep what this run needs from `strata store gc`; then see that what it builds on
    has not just been collected."""
    try:
        with disk_errors(RESULTS):
            sweep_dead(RESULTS)
            mark(RESULTS, CONFIG_FILES, EXPERIMENT)
    except StrataError as error:
        refuse(error)
    except OSError as error:
        refuse(unusable(error))
    refuse_if_gone()


def require_scheduler():
    """Refuse a run on Slurm where there is no Slurm, or one that forgets jobs, before anything is submitted."""
    if workflow.executor_plugin.name != "slurm":
        return
    if shutil.which("sbatch") is None:
        refuse(
            ClusterError(
                "this profile submits to Slurm, and there is no `sbatch` on this machine",
                where="PATH",
                expected="sbatch",
                got="none",
                todo="run it on a login node of the cluster, or without `--profile slurm`",
            )
        )
    accounts, settings = keeps_accounts(), workflow.executor_settings
    if not accounts:
        forget_sacct()
    try:
        check_job_age(settings.status_command, accounts, settings.init_seconds_before_status_checks, tell)
    except ClusterError as error:
        refuse(error)


def require_llama():
    """Refuse a run that is to make files by llama.cpp where there is none, before it begins."""
    if any(job.rule.name == "quantize" for job in workflow.dag.needrun_jobs()):
        try:
            llama.require()
        except StrataError as error:
            refuse(error)


def keeps_accounts():
    """Whether Slurm's accounting can be asked."""
    ask = ["sacct", "-n", "-X", "--name", "none"]
    return bool(shutil.which("sacct")) and not subprocess.run(ask, capture_output=True, check=False).returncode


def watch_cluster():
    """See to it that a run on Slurm does not wait for a job that will not come back: it ends as by Ctrl-C, so that
    Snakemake cancels its other jobs. By a signal of our own, since one that runs in the background ignores Ctrl-C's."""

    def end(error):
        ENDED_BY.append(error)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    if workflow.executor_plugin.name == "slurm":
        signal.signal(signal.SIGUSR2, signal.default_int_handler)
        requeues = workflow.executor_settings.requeue
        LAST_LOOKS.append(watch(Path.cwd(), requeues, tell, end))


def forget_sacct():
    """Where there is no accounting: the plugin asks sacct when the controller is slow, and loses all jobs by its error."""
    import snakemake_executor_plugin_slurm as plugin

    is_there = plugin.is_query_tool_available
    plugin.is_query_tool_available = lambda tool: tool != "sacct" and is_there(tool)


def say_where_the_report_is():
    """At the end of a run that wrote the report. One that did not must not point at an older one."""
    page = RESULTS / "report" / "report.html"
    if page.exists() and page.stat().st_mtime >= STARTED:
        tell(f"report: {page.resolve()}")


def report_what_there_is():
    """At the end of a run that failed: a report of the variants that are finished, beside the last whole one."""
    for look in LAST_LOOKS:
        look()
    tell("The report was not written again. Mend what failed above and run the same command.")
    command = [sys.executable, "-m", "strata", "report", "--partial", "--configfile", *CONFIG_FILES]
    path = {"PYTHONPATH": str(Path(workflow.basedir, "workflow"))}
    run = subprocess.run(command, env=os.environ | path, capture_output=True, text=True)
    tell((run.stdout or run.stderr).strip())
    if ENDED_BY:
        refuse(ENDED_BY[0])
