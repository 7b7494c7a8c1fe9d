"""Evaluation suites: named, versioned lists of tasks with pinned data and pinned numerics, one YAML file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from strata.config import AnySource, PathSource
from strata.document import Document, read
from strata.errors import ConfigError
from strata.schema import Model, Name, by_key_value, validate
from strata.tasks.taskfiles import installed

FOLDER = Path(__file__).parents[1] / "suites"


class Numerics(Model):
    """Everything that moves a score and is not the model or the data. All of it is part of an evaluation's id."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        description="of weights and activations; log-probabilities are always of float32"
    )
    batch_size: int = Field(gt=0, description="sequences in a forward pass")
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="transformers' implementation of it")
    generation: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what generates texts, in groups that do nothing else"
    )
    max_length: int = Field(gt=0, description="tokens; longer requests lose their beginning")
    add_bos_token: bool = Field(description="start every request with the tokenizer's BOS")
    seed: int = Field(description="for Python, numpy, torch and few-shot draws")


class BitsPerByte(Model):
    """Bits per byte of running text: how well the model predicts documents it has not seen."""

    kind: Literal["bits_per_byte"]
    source: Name = Field(description="a name in the suite's `sources`; every file is a document")
    bytes: int = Field(gt=0, description="of each document, from its start, cut back to a whole word")


class Continuation(Model):
    """Choose the sentence that follows, against sentences of other documents."""

    kind: Literal["continuation"]
    source: Name = Field(description="a name in the suite's `sources`; every file is a document")
    items: int = Field(gt=0, description="questions, spread evenly over the documents")
    seed: int = Field(description="decides which sentences are drawn")
    choices: int = Field(ge=2, description="the true next sentence and choices - 1 others")
    characters: list[int] = Field(min_length=2, max_length=2, description="shortest and longest sentence used")

    @model_validator(mode="after")
    def _ordered(self) -> Continuation:
        if not 0 < self.characters[0] <= self.characters[1]:
            raise PydanticCustomError("strata", "`characters`: the shortest length, then the longest")
        return self


class BigBench(Model):
    """Multiple choice from BIG-bench's own task files, behind examples that are the same for every question."""

    kind: Literal["bigbench"]
    source: Name = Field(description="a name in the suite's `sources`: files of the benchmark")
    file: str | list[str] = Field(min_length=1, description="a task file of the source, or several, asked evenly")
    shots: int = Field(ge=0, description="examples before each question, which are not asked")
    items: int = Field(gt=0, description="questions")
    seed: int = Field(description="decides which questions are drawn, which are examples, and the order of choices")
    metric: Literal["acc", "acc_norm"] = Field(
        default="acc", description="acc takes the likeliest choice, acc_norm the likeliest per character"
    )


class Harness(Model):
    """A task of lm-eval by its name there, or all of a group or tag, asked of pinned data."""

    kind: Literal["harness"]
    task: str = Field(min_length=1, description="lm-eval's name of a task, a group or a tag")
    folder: str = Field(
        pattern=r"^(\.|[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)*)$",
        description="where its files are: a folder of lm-eval's `tasks`, or of `definitions`",
    )
    definitions: Name | None = Field(
        default=None, description="a name in the suite's `sources`: task files of your own, in one of `task_folders`"
    )
    source: Name = Field(description="a name in the suite's `sources`: the data")
    files: dict[str, str] = Field(
        min_length=1,
        description="files of the source for each split; `{name}` stands for the `dataset_name` in lm-eval's file",
    )
    shots: int = Field(ge=0, description="examples before each question")
    draw: Literal["lm_eval", "leaderboard_v1"] = Field(
        default="lm_eval", description="how examples are drawn; leaderboard_v1 as the Open LLM Leaderboard did in 2023"
    )
    metric: Literal["acc", "acc_norm", "mc2", "exact_match"]
    filter: str = Field(default="none", description="lm-eval's filter of generated texts, whose metric counts")
    mean: Literal["items", "tasks"] = Field(
        default="items", description="of several tasks: over all their questions, or the plain mean of their scores"
    )
    until: list[str] | None = Field(default=None, description="where a generated text ends, instead of lm-eval's")
    ignore: list[str] | None = Field(
        default=None, description="expressions that exact_match takes out of both texts first, instead of lm-eval's"
    )


Task = Annotated[
    Annotated[BitsPerByte, Tag("@bits_per_byte")]
    | Annotated[Continuation, Tag("@continuation")]
    | Annotated[BigBench, Tag("@bigbench")]
    | Annotated[Harness, Tag("@harness")],
    by_key_value("kind", "bits_per_byte", "continuation", "bigbench", "harness"),
]


class Suite(Model):
    """A suite file."""

    suite: Name = Field(description="its name, as the file is called")
    version: int = Field(gt=0, description="raised whenever a score could change")
    description: str = Field(default="", description="one paragraph for the report")
    sources: dict[Name, AnySource] = Field(description="pinned data, as in the config")
    numerics: Numerics
    tasks: dict[Name, Task] = Field(min_length=1)
    average: list[Name] = Field(
        default_factory=list, description="tasks whose plain mean is a column of the table, as `average`"
    )
    groups: dict[Name, list[Name]] = Field(description="tasks that share one job, since starting a process takes 10 s")


def load(name: str, where: str = "") -> tuple[Suite, Document]:
    """The suite called `name` in workflow/suites, or in the file `name` when it ends in .yaml.

    Raises:
        ConfigError: there is no such suite (`where` tells who asked for it), or the file is not one.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise ConfigError(
            "no such suite", where=where, expected=f"{known}, or the path of a .yaml file", got=file.absolute()
        )
    document = read(file)
    suite = validate(Suite, document)
    if suite.suite != file.stem:
        where = document.where(("suite",))
        raise ConfigError("a suite is called as its file is", where=where, expected=file.stem, got=suite.suite)
    grouped = [task for tasks in suite.groups.values() for task in tasks]
    if sorted(grouped) != sorted(suite.tasks):
        raise ConfigError(
            "every task belongs to exactly one group",
            where=document.where(("groups",)),
            expected=", ".join(sorted(suite.tasks)),
            got=", ".join(sorted(grouped)),
        )
    if set(suite.average) - set(suite.tasks) or "average" in suite.tasks:
        raise ConfigError(
            "an average is over tasks of the suite, none of which is called `average`",
            where=document.where(("average",)) if suite.average else document.where(("tasks",)),
            expected=", ".join(suite.tasks),
            got=", ".join(suite.average),
        )
    for task, definition in suite.tasks.items():
        for key in ("source", "definitions"):
            source = getattr(definition, key, None)
            if source is not None and source not in suite.sources:
                raise ConfigError(
                    "no such source in this suite",
                    where=document.where(("tasks", task, key)),
                    expected=", ".join(suite.sources),
                    got=repr(source),
                )
    kinds = {suite.tasks[task].kind == "bits_per_byte" for task in suite.average}
    if len(kinds) > 1:
        raise ConfigError(
            "bits per byte, of which less is better, have no mean with other scores",
            where=document.where(("average",)),
            expected="tasks of one kind",
            got="tasks of both kinds",
            todo="leave those of the other kind out",
        )
    return suite, document


def check_code(suite: Suite, document: Document, allowed: Sequence[str]) -> None:
    """Refuse task files, which can hold code, from a folder that the config does not allow, and such as are missing.

    Raises:
        ConfigError: as above.
    """
    for name, task in suite.tasks.items():
        if not isinstance(task, Harness):
            continue
        key = ("tasks", name, "definitions" if task.definitions else "folder")
        if task.definitions is None:
            if not (installed() / task.folder).is_dir():
                raise ConfigError(
                    "lm-eval has no such folder of tasks", where=document.where(key),
                    expected=f"a folder below {installed()}", got=task.folder,
                )  # fmt: skip
            continue
        source, where = suite.sources[task.definitions], document.where(key)
        folders = [Path(folder).expanduser().resolve() for folder in allowed]
        if not isinstance(source, PathSource) or not any(
            Path(source.location).resolve().is_relative_to(folder) for folder in folders
        ):
            raise ConfigError(
                "task files can hold code, and load only from folders that the config allows", where=where,
                expected=", ".join(map(str, folders)) or "a folder of `task_folders`, of which there is none",
                got=source.location if isinstance(source, PathSource) else "no local folder",
                todo="if you trust the folder, add it to `task_folders` in the config",
            )  # fmt: skip
