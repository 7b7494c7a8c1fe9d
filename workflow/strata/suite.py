"""Evaluation suites: named, versioned lists of tasks with pinned data and pinned numerics, one YAML file each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from strata.config import AnySource
from strata.document import Document, read
from strata.errors import ConfigError
from strata.schema import Model, Name, by_key_value, validate

FOLDER = Path(__file__).parents[1] / "suites"


class Numerics(Model):
    """Everything that moves a score and is not the model or the data. All of it is part of an evaluation's id."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="of weights and activations")
    batch_size: int = Field(gt=0, description="sequences in a forward pass")
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


Task = Annotated[
    Annotated[BitsPerByte, Tag("@bits_per_byte")]
    | Annotated[Continuation, Tag("@continuation")]
    | Annotated[BigBench, Tag("@bigbench")],
    by_key_value("kind", "bits_per_byte", "continuation", "bigbench"),
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
        default_factory=list, description="tasks of one metric whose plain mean is a column of the table, as `average`"
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
        if definition.source not in suite.sources:
            raise ConfigError(
                "no such source in this suite",
                where=document.where(("tasks", task, "source")),
                expected=", ".join(suite.sources),
                got=repr(definition.source),
            )
    return suite, document
