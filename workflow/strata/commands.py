"""Commands: what each word behind `strata` does. Each imports what it needs, when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from strata import progress, store
from strata.errors import ClusterError, NonDeterministic, StrataError, UsageError
from strata.recipe import DETERMINISTIC

if TYPE_CHECKING:
    from strata.experiment import Experiment


def do_job(options: argparse.Namespace) -> None:
    if options.operation == "merge" and not options.recipe.startswith("{"):
        from strata.standalone import merge_file

        print(merge_file(Path(options.recipe), options.out, options.root, _files(options)))
        return
    if options.operation == "screen" and (options.dry_run or not options.recipe.startswith("{")):
        _tell_screen(options)
        return
    from strata.operations import run

    run(options.root, options.operation, options.recipe, options.location, options.processes, options.nodes)


def _tell_screen(options: argparse.Namespace) -> None:
    from strata import status

    screen = status.screen_of(_experiment(options), options.recipe)
    if options.dry_run:
        from strata.dry_run import dry_run

        print(dry_run(screen))
    else:
        from strata.report.screened import told

        print(told(options.root, screen))


def _files(options: argparse.Namespace) -> list[str]:
    from strata.config import config_files

    return config_files(options.configfile or [])


def _experiment(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from strata import experiment

    return experiment.load(_files(options))


def do_ls(options: argparse.Namespace) -> None:
    from strata import status

    print(status.listing(options.root, _experiment(options)))


def do_show(options: argparse.Namespace) -> None:
    from strata import status

    print(status.description(options.root, _experiment(options), options.name))


def do_plan(options: argparse.Namespace) -> None:
    from strata import status

    print(status.planned(options.root, _experiment(options), options.name))


def do_compare(options: argparse.Namespace) -> None:
    from strata.report import formats, table

    found = table.versus(options.root, _experiment(options), options.name, options.other)
    print(formats.comparison(options.name, options.other, found))


def do_why(options: argparse.Namespace) -> None:
    from strata import status

    print(status.reasons(options.root, _experiment(options), options.name))


def do_redo(options: argparse.Namespace) -> None:
    from strata import redo, status
    from strata.lease import at_work
    from strata.train.state import home

    experiment = _experiment(options)
    jobs = redo.jobs_of(options.root, experiment, options.name)
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
    begun = any(home(options.root, job.id).exists() for job in jobs)
    if not begun and all(status.state(options.root, job) == "missing" for job in jobs):
        raise UsageError(
            "nothing to redo: it has not been built",
            where=options.root,
            expected="a variant or a screen that is built, at least in part",
            got=options.name,
            todo="build it with snakemake, see the README",
        )
    if busy := sorted(at_work(options.root).keys() & {job.id for job in jobs}):
        raise ClusterError(
            f"a process is at work on {options.name}", where=options.root / "leases", expected="none",
            got=", ".join(busy), todo="let it end, or end it (`strata store roots` tells of it), and run again",
        )  # fmt: skip
    moved = redo.reject(options.root, experiment, options.name, "strata redo")
    snakefile = str(Path(__file__).parents[2] / "Snakefile")
    goals = redo.goals_of(options.root, experiment, options.name)
    files = ["--configfile", *options.configfile] if options.configfile else []
    code = _run_to_its_end([sys.executable, "-m", "snakemake", "-s", snakefile, "--cores", "all", *goals, *files])
    if code:
        back = redo.restore(options.root, moved)
        raise UsageError(
            "the rebuild failed", where=", ".join(goals), expected="exit code 0", got=f"snakemake exited with {code}",
            todo=f"see its messages above. As before: {', '.join(back) or 'nothing'}; the rest: results/quarantine",
        )  # fmt: skip
    for line in _compared(options.root, moved):
        print(line)


def _compared(root: Path, moved: Mapping[str, tuple[Path, str]]) -> Iterator[str]:
    """Whether each object has the content again that it had, those that others are made from first.

    Raises:
        NonDeterministic: one has not that must have, as what it is made from has.
    """
    other: set[str] = set()
    for id, (place, before) in moved.items():
        made = store.require(root, id)
        if made.digest != before:
            of_other = other.intersection((*made.recipe.parents, *made.recipe.sources))
            follows = of_other or _made_from(made.path) != _made_from(place)
            if made.recipe.operation in DETERMINISTIC and not follows:
                raise NonDeterministic(
                    "one recipe gave two contents", where=id, expected=f"digest {before}", got=made.digest,
                    todo="what was made from the old content must be redone too; the old one is in quarantine",
                )  # fmt: skip
            other.add(id)
        yield f"{id}: {'OTHER CONTENT than before' if id in other else 'the same content as before'}"


def _made_from(place: Path) -> dict[str, str]:
    """The contents that an object was made from, where it tells them: a screen that was lost may rank otherwise now."""
    from strata.jsonfile import read_object

    file = place / "manifest.json"
    return dict(read_object(file)["facts"].get("made_from", {})) if file.exists() else {}


def _run_to_its_end(command: list[str]) -> int:
    """Run a command; on Ctrl-C, which it gets too, wait until it has cleaned up."""
    import subprocess

    process = subprocess.Popen(command)  # noqa: S603
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def do_verify(options: argparse.Namespace) -> None:
    from strata import status

    experiment = _experiment(options)
    if options.scores:
        from strata.report import page

        print(page.verify_scores(options.root, experiment))
        return
    jobs = [job for variant in experiment.variants.values() for job in status.needed(experiment, variant)]
    screens = [job for screen in experiment.screens.values() for job in screen.rankings]
    jobs += status.with_inputs(experiment, screens)
    _say_verified(options.root, dict.fromkeys(job.id for job in jobs))


def _say_verified(root: Path, ids: Iterable[str]) -> None:
    from strata import inventory

    broken = []
    for id, said, error in inventory.verify(root, ids):
        print(f"{id}  {said}")
        if error:
            broken.append(error)
    for error in broken[1:]:
        progress.say(f"error: {error}")
    if broken:
        raise broken[0]


def do_store(options: argparse.Namespace) -> None:
    from strata import inventory

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


def do_pin(options: argparse.Namespace) -> None:
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


def do_schema(options: argparse.Namespace) -> None:
    from strata import reference

    print(reference.markdown() if options.markdown else reference.json_schema(), end="")


def do_links(options: argparse.Namespace) -> None:
    from strata.links import link_all

    link_all(options.root, _experiment(options))


def do_variant(options: argparse.Namespace) -> None:
    from strata.links import link_one

    link_one(options.root, _experiment(options), options.name)


def do_report(options: argparse.Namespace) -> None:
    from strata.report.page import write_report

    page = write_report(options.root, _experiment(options), options.partial)
    if options.partial:
        print(f"partial report: {page.resolve()}")


def _loaded(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """The experiment, and the config that it is of."""
    from strata import config, experiment

    loaded = config.load(_files(options))
    return experiment.resolve(*loaded), loaded


def do_publish(options: argparse.Namespace) -> None:
    from strata.publish.folder import publish

    experiment, loaded = _loaded(options)
    made = publish(options.root, experiment, loaded, options.name)
    print(f"{made.variant}: {made.place}, {len(made.files)} files, {made.bytes:,} bytes")


def do_upload(options: argparse.Namespace) -> None:
    from strata.publish.hub import upload

    experiment, loaded = _loaded(options)
    try:
        for name in options.names:
            made = upload(options.root, experiment, loaded, name)
            print(f"{made.variant}: {made.url}, {len(made.files)} files, {made.bytes:,} bytes", flush=True)
    finally:
        _renew_report(options.root, experiment)


def _renew_report(root: Path, experiment: Experiment) -> None:
    """Let the report link what was uploaded, where there is one of this experiment."""
    from strata.report.page import write_report

    if (root / "report" / "report.html").exists():
        try:
            write_report(root, experiment)
        except StrataError as error:
            progress.say(f"the report does not link it yet: {error}")


def _voice(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from strata.talk import Style, voice

    least = {"tokens": 1, "temperature": 0, "seed": 0, "context": 1}
    for name, most in least.items():
        if (given := getattr(options, name)) < most:
            raise UsageError("not a usable number", where=f"--{name}", expected=f"{most} or more", got=given)
    style = Style(options.tokens, options.temperature, seed=options.seed, context=options.context)
    return voice(options.root, _experiment(options), options.name, options.gguf, style)


def _say_on(piece: str) -> None:
    print(piece, end="", flush=True)


def do_chat(options: argparse.Namespace) -> None:
    from strata.talk import HELP, converse

    with _voice(options) as answer:
        if sys.stdin.isatty():
            _say_on(f"{options.name}. {HELP}\n")
        converse(answer, _lines(), _say_on, options.system)


def _lines() -> Iterator[str]:
    """What is typed, or piped in, line by line."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - so that lines can be edited
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def do_ask(options: argparse.Namespace) -> None:
    from strata.talk import ask

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise UsageError("nothing is asked", where="PROMPT", expected="a question", got="nothing")
    system = [{"role": "system", "content": options.system}] * bool(options.system)
    with _voice(options) as answer:
        ask(answer, prompt if options.plain else [*system, {"role": "user", "content": prompt}], _say_on)
    _say_on("\n")


def do_export(options: argparse.Namespace) -> None:
    from strata.report.exports import write_exports

    for folder in write_exports(options.root, _experiment(options), options.names, options.to, options.organization):
        print(folder)
