"""`python -m strata <command>`, also installed as `strata`: the words it takes, and how a failure ends."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from strata import commands, progress
from strata.errors import Preempted, StrataError
from strata.recipe import KINDS

OPERATIONS = tuple(KINDS)
TOLD = {
    "merge": "build what a mergekit YAML asks for: `strata merge FILE.yaml OUT`; without OUT, tell its plan",
    "screen": "the best plans that a screen has found; with --dry-run, what it would try and cost",
}
WORDS = {"merge": "FILE", "screen": "NAME"}  # that people write where the workflow has a recipe


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
        if sys.stdout:  # there is none without an open output
            sys.stdout.flush()  # whoever reads it may have gone meanwhile
        return 0
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks stop as one
            progress.say(str(error))
        return error.exit_code
    except StrataError as error:
        progress.say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        from strata.disk import unusable

        told = unusable(error)
        progress.say(f"error: {told}")
        return told.exit_code
    except Exception as error:
        import traceback

        traceback.print_exc()
        progress.say(f"error: unexpected {type(error).__name__}: {error}\n  do:       report it, with the log")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="strata", description="Depth up-scaling experiments as one workflow.")
    parser.add_argument("--root", type=Path, default=Path("results"), help="where results lie (default: results)")
    words = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: object, text: str, *, config: bool = True, name_of: str = "") -> argparse.ArgumentParser:
        command = words.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if name_of:
            command.add_argument("name", metavar="NAME", help=name_of)
        if config:
            command.add_argument(
                "--configfile", nargs="+", metavar="FILE", help="files laid over config.yaml, later ones win"
            )
        return command

    add("ls", commands.do_ls, "list the variants and how far each is")
    add("show", commands.do_show, "recipe, plan, digest and scores of a variant", name_of="a variant")
    add(
        "plan",
        commands.do_plan,
        "what a variant would be: layers, seams, parameters and bytes; builds nothing",
        name_of="a variant",
    )
    add("why", commands.do_why, "what would run for a variant, and because of which change", name_of="a variant")
    compare = add(
        "compare",
        commands.do_compare,
        "one variant against another, task by task: is the difference one?",
        name_of="a variant",
    )
    compare.add_argument("other", metavar="OTHER", help="what to hold it against")
    add(
        "redo",
        commands.do_redo,
        "put a variant's results, or a screen's, into quarantine and build them again",
        name_of="a variant or a screen",
    )
    add(
        "verify", commands.do_verify, "hash every byte that the config needs; what is damaged goes to quarantine"
    ).add_argument(
        "--scores", action="store_true", help="make every score and the report again from the sample logs instead"
    )
    _add_store(add("store", commands.do_store, "what the store holds, and what keeps it", config=False))
    pin = add("pin", commands.do_pin, "fill in sha256 and shape of the sources of a config")
    pin.add_argument("--suite", metavar="FILE", type=Path, help="pin a suite file instead")
    pin.add_argument("--shape", action="store_true", help="measure shapes afresh")
    add("schema", commands.do_schema, "print the JSON Schema of the config", config=False).add_argument(
        "--markdown", action="store_true", help="as a reference for people"
    )
    for operation in OPERATIONS:
        job = add(
            operation,
            commands.do_job,
            TOLD.get(operation, f"(called by the workflow) one {operation} job"),
            config=False,
        )
        job.add_argument("recipe", metavar=WORDS.get(operation), help="or a recipe's canonical JSON, as jobs have")
        if operation == "screen":
            job.add_argument("--dry-run", action="store_true", help="tell what it would try and cost, and run nothing")
            job.add_argument("--configfile", nargs="+", metavar="FILE", help="files laid over config.yaml")
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
    add("links", commands.do_links, "(called by the workflow) link every variant's name").add_argument("--log")
    report = add("report", commands.do_report, "write the report (the workflow does so at its end)")
    report.add_argument("--log", help=argparse.SUPPRESS)
    report.add_argument(
        "--partial", action="store_true", help="of what is finished, with the gaps, into results/report/partial"
    )
    add(
        "publish",
        commands.do_publish,
        "write a variant into the folder that its `publish` names (the workflow does so)",
        name_of="a variant",
    ).add_argument("--log", help=argparse.SUPPRESS)
    upload = add(
        "upload",
        commands.do_upload,
        "upload variants to the repositories that their `publish` names; nothing else does",
    )
    upload.add_argument("names", metavar="NAME", nargs="+", help="variants")
    _add_talk(add("chat", commands.do_chat, "talk with a variant in the terminal", name_of="a variant"))
    ask = add("ask", commands.do_ask, "one answer of a variant", name_of="a variant")
    ask.add_argument("prompt", metavar="PROMPT", help="the question, or - for what comes in on standard input")
    ask.add_argument("--plain", action="store_true", help="no question, but a text to go on with, without a template")
    _add_talk(ask)
    export = add(
        "export",
        commands.do_export,
        "the scores of variants as a model card's model-index and as every_eval_ever's JSON",
    )
    export.add_argument("names", metavar="NAME", nargs="*", help="variants (default: all)")
    export.add_argument("--to", metavar="FOLDER", type=Path, help="default: `report/export` in the results")
    export.add_argument("--organization", metavar="NAME", default="", help="who made the variants, for every_eval_ever")
    add(
        "variant", commands.do_variant, "(called by the workflow) link and sum up one variant", name_of="a variant"
    ).add_argument("--log")
    return parser


def _add_talk(command: argparse.ArgumentParser) -> None:
    command.add_argument("--gguf", metavar="TYPE", help="run this GGUF file of the variant by llama.cpp")
    command.add_argument("--system", metavar="TEXT", default="", help="what the model is told before all else")
    command.add_argument("--tokens", type=int, default=256, help="the most an answer may have (default: 256)")
    command.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest (default: 0.7)")
    command.add_argument("--context", type=int, default=4096, help="tokens that a GGUF keeps in mind (default: 4096)")
    command.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")


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
