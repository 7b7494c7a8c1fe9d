"""`python -m strata <command>`, also installed as `strata`. Each command imports what it needs, when it runs."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from strata import progress
from strata.errors import Preempted, StrataError, UsageError
from strata.recipe import KINDS

OPERATIONS = tuple(KINDS)
TOLD = {"merge": "build what a mergekit YAML asks for: `strata merge FILE.yaml OUT`; without OUT, tell its plan"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or that of the error's kind."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show is no failure
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that work in progress is cleaned up
    try:
        if getattr(options, "log", None):
            progress.log_to(options.log)
        options.run(options)
        return 0
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks stop as one
            _say(str(error))
        return error.exit_code
    except StrataError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        from strata.disk import unusable

        told = unusable(error)
        _say(f"error: {told}")
        return told.exit_code
    except Exception as error:
        import traceback

        traceback.print_exc()
        _say(f"error: unexpected {type(error).__name__}: {error}\n  do:       report it, with the log")
        return 1


def _say(message: str) -> None:
    print(message, file=progress.terminal)
    if progress.terminal is not sys.stderr:
        with suppress(OSError):  # which may lie on the disk that is full
            print(message, file=sys.stderr, flush=True)  # into the log as well


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="strata", description="Depth up-scaling experiments as one workflow.")
    parser.add_argument("--root", type=Path, default=Path("results"), help="where results lie (default: results)")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: object, text: str, *, config: bool = True, name_of: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if name_of:
            command.add_argument("name", metavar="NAME", help=name_of)
        if config:
            command.add_argument(
                "--configfile", nargs="+", metavar="FILE", help="files laid over config.yaml, later ones win"
            )
        return command

    add("ls", _ls, "list the variants and how far each is")
    add("show", _show, "recipe, plan, digest and scores of a variant", name_of="a variant")
    add(
        "plan",
        _plan,
        "what a variant would be: layers, seams, parameters and bytes; builds nothing",
        name_of="a variant",
    )
    add("why", _why, "what would run for a variant, and because of which change", name_of="a variant")
    compare = add(
        "compare", _compare, "one variant against another, task by task: is the difference one?", name_of="a variant"
    )
    compare.add_argument("other", metavar="OTHER", help="what to hold it against")
    add("redo", _redo, "put a variant's results into quarantine and build them again", name_of="a variant")
    add("verify", _verify, "hash every byte that the config needs; what is damaged goes to quarantine").add_argument(
        "--scores", action="store_true", help="make every score and the report again from the sample logs instead"
    )
    _add_store(add("store", _store, "what the store holds, and what keeps it", config=False))
    pin = add("pin", _pin, "fill in sha256 and shape of the sources of a config")
    pin.add_argument("--suite", metavar="FILE", type=Path, help="pin a suite file instead")
    pin.add_argument("--shape", action="store_true", help="measure shapes afresh")
    add("schema", _schema, "print the JSON Schema of the config", config=False).add_argument(
        "--markdown", action="store_true", help="as a reference for people"
    )
    for operation in OPERATIONS:
        job = add(operation, _job, TOLD.get(operation, f"(called by the workflow) one {operation} job"), config=False)
        job.add_argument("recipe", metavar="FILE" if operation == "merge" else None, help="a recipe's canonical JSON")
        if operation == "merge":
            job.add_argument("out", metavar="OUT", nargs="?", type=Path, help="the folder to write")
            job.add_argument(
                "--configfile", action="append", metavar="FILE", help="where `sources:` are, over config.yaml"
            )
        job.add_argument("--location", default="", help=argparse.SUPPRESS)  # where a local source lies
        job.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)  # that train together
        job.add_argument("--nodes", type=int, default=1, help=argparse.SUPPRESS)  # that Slurm has given them
        job.add_argument("--log", help=argparse.SUPPRESS)  # file for everything but progress and errors
        job.set_defaults(operation=operation)
    add("links", _links, "(called by the workflow) link every variant's name").add_argument("--log")
    report = add("report", _report, "write the report (the workflow does so at its end)")
    report.add_argument("--log", help=argparse.SUPPRESS)
    report.add_argument(
        "--partial", action="store_true", help="of what is finished, with the gaps, into results/report/partial"
    )
    export = add(
        "export", _export, "the scores of variants as a model card's model-index and as every_eval_ever's JSON"
    )
    export.add_argument("names", metavar="NAME", nargs="*", help="variants (default: all)")
    export.add_argument("--to", metavar="FOLDER", type=Path, help="default: `report/export` in the results")
    export.add_argument("--organization", metavar="NAME", default="", help="who made the variants, for every_eval_ever")
    add("variant", _variant, "(called by the workflow) link and sum up one variant", name_of="a variant").add_argument(
        "--log"
    )
    return parser


def _add_store(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="action")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text)

    add("list", "every object, its size, and what keeps it")
    show = add("show", "what an object is made from, what is in it, and what keeps it")
    show.add_argument("name", metavar="ID", help="an id, or the first eight characters of its hash")
    verify = add("verify", "hash every byte; what is damaged goes to quarantine, and nothing is deleted")
    verify.add_argument("names", metavar="ID", nargs="*", help="objects (default: all)")
    add("roots", "what keeps objects: variants, the last run of each config, jobs at work")
    gc = add("gc", "what nothing keeps: told, and removed with --delete")
    gc.add_argument("--delete", action="store_true", help="remove it")
    gc.add_argument(
        "--configfile", nargs="+", metavar="FILE", help="what they need is kept as well, as config.yaml's is"
    )
    gc.add_argument("--days", type=float, default=1.0, help="leave what is younger (default: 1)")


def _job(options: argparse.Namespace) -> None:
    if options.operation == "merge" and not options.recipe.startswith("{"):
        from strata.standalone import merge_file

        print(merge_file(Path(options.recipe), options.out, options.root, _files(options)))
        return
    from strata.operations import run

    run(options.root, options.operation, options.recipe, options.location, options.processes, options.nodes)


def _files(options: argparse.Namespace) -> list[str]:
    from strata.config import config_files

    return config_files(options.configfile or [])


def _experiment(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from strata import experiment

    return experiment.load(_files(options))


def _ls(options: argparse.Namespace) -> None:
    from strata import status

    print(status.listing(options.root, _experiment(options)))


def _show(options: argparse.Namespace) -> None:
    from strata import status

    print(status.description(options.root, _experiment(options), options.name))


def _plan(options: argparse.Namespace) -> None:
    from strata import status

    print(status.planned(options.root, _experiment(options), options.name))


def _compare(options: argparse.Namespace) -> None:
    from strata.report import formats, table

    found = table.versus(options.root, _experiment(options), options.name, options.other)
    print(formats.comparison(options.name, options.other, found))


def _why(options: argparse.Namespace) -> None:
    from strata import status

    print(status.reasons(options.root, _experiment(options), options.name))


def _redo(options: argparse.Namespace) -> None:
    from strata import status, store
    from strata.errors import ClusterError, NonDeterministic
    from strata.lease import at_work
    from strata.recipe import DETERMINISTIC
    from strata.train.state import home

    experiment = _experiment(options)
    status.variant_of(experiment, options.name)
    if options.root != Path("results"):
        raise UsageError(
            "redo builds in `results` alone",
            where="--root",
            expected="results",
            got=options.root,
            todo="run it in the folder above",
        )
    if any(Path(".snakemake/locks").glob("*")):
        raise UsageError(
            "snakemake is running here, or was killed", where=Path(".snakemake/locks").absolute(),
            expected="no lock", got="a lock",
            todo="wait for it, or run `snakemake --unlock`",
        )  # fmt: skip
    jobs = (experiment.variants[options.name].job, *experiment.variants[options.name].evaluations)
    begun = home(options.root, jobs[0].id).exists() or status.outdated(options.root, experiment.variants[options.name])
    if not begun and all(status.state(options.root, job) == "missing" for job in jobs):
        raise UsageError(
            "nothing to redo: it has not been built",
            where=options.root,
            expected="a variant that is built, at least in part",
            got=options.name,
            todo="build it with snakemake, see the README",
        )
    if busy := sorted(at_work(options.root).keys() & {job.id for job in jobs}):
        raise ClusterError(
            "a process is at work on this variant", where=options.root / "leases", expected="none",
            got=", ".join(busy), todo="let it end, or end it (`strata store roots` tells of it), and run again",
        )  # fmt: skip
    moved = status.reject_variant(options.root, experiment, options.name, "strata redo")
    snakefile = str(Path(__file__).parents[2] / "Snakefile")
    goal = str(options.root / "variants" / f"{options.name}.json")
    files = ["--configfile", *options.configfile] if options.configfile else []
    code = _run_to_its_end([sys.executable, "-m", "snakemake", "-s", snakefile, "--cores", "all", goal, *files])
    if code:
        back = status.restore_variant(options.root, moved)
        raise UsageError(
            "the rebuild failed", where=goal, expected="exit code 0", got=f"snakemake exited with {code}",
            todo=f"see its messages above. As before: {', '.join(back) or 'nothing'}; the rest: results/quarantine",
        )  # fmt: skip
    for id, (_, before) in moved.items():
        now = store.require(options.root, id).digest
        if before != now and id.partition("-")[0] in DETERMINISTIC:
            raise NonDeterministic(
                "one recipe gave two contents", where=id, expected=f"digest {before}", got=now,
                todo="what was made from the old content must be redone too; the old one is in quarantine",
            )  # fmt: skip
        print(f"{id}: {'the same content as before' if before == now else 'OTHER CONTENT than before'}")


def _run_to_its_end(command: list[str]) -> int:
    """Run a command; on Ctrl-C, which it gets too, wait until it has cleaned up."""
    import subprocess

    process = subprocess.Popen(command)  # noqa: S603
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _verify(options: argparse.Namespace) -> None:
    from strata import status

    experiment = _experiment(options)
    if options.scores:
        from strata.report import page

        print(page.verify_scores(options.root, experiment))
        return
    jobs = [job.id for variant in experiment.variants.values() for job in status.needed(experiment, variant)]
    _say_verified(options.root, dict.fromkeys(jobs))


def _say_verified(root: Path, ids: Iterable[str]) -> None:
    from strata import inventory

    broken = []
    for id, said, error in inventory.verify(root, ids):
        print(f"{id}  {said}")
        if error:
            broken.append(error)
    for error in broken[1:]:
        _say(f"error: {error}")
    if broken:
        raise broken[0]


def _store(options: argparse.Namespace) -> None:
    from strata import inventory, store

    match options.action:
        case "list":
            print(inventory.listing(options.root))
        case "show":
            print(inventory.description(options.root, options.name))
        case "verify":
            ids = [inventory.find(options.root, name) for name in options.names]
            _say_verified(options.root, ids or store.objects(options.root))
        case "roots":
            print(inventory.roots(options.root))
        case "gc":
            print(inventory.collect(options.root, options.days, options.delete, _experiment(options).jobs))


def _pin(options: argparse.Namespace) -> None:
    from strata import config, suite
    from strata.pin import pin

    if options.suite:
        files, section, models = [options.suite], suite.load(str(options.suite))[0].sources, set()
    else:
        files = [Path(file) for file in _files(options)]
        loaded = config.load(files)[0]
        section = loaded.sources
        models = {v.init.source for v in loaded.variants.values() if isinstance(v, config.InitVariant)}
    said = [line for file in files for line in pin(file, section, models, options.shape)]
    print("\n".join(said) if said else "every source is pinned")


def _schema(options: argparse.Namespace) -> None:
    from strata import reference

    print(reference.markdown() if options.markdown else reference.json_schema(), end="")


def _links(options: argparse.Namespace) -> None:
    from strata.links import link_all

    link_all(options.root, _experiment(options))


def _variant(options: argparse.Namespace) -> None:
    from strata.links import link_one

    link_one(options.root, _experiment(options), options.name)


def _report(options: argparse.Namespace) -> None:
    from strata.report.page import write_report

    page = write_report(options.root, _experiment(options), options.partial)
    if options.partial:
        print(f"partial report: {page.resolve()}")


def _export(options: argparse.Namespace) -> None:
    from strata.report.exports import write_exports

    for folder in write_exports(options.root, _experiment(options), options.names, options.to, options.organization):
        print(folder)
