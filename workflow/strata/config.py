"""The config: one schema for its checks, its defaults, its documentation and the JSON Schema for editors.

`load` reads the files strictly; what a single value cannot tell (parents, ranges, pins) is checked in `experiment`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from strata.document import Document, Key, overlay, read
from strata.errors import ConfigError
from strata.plan import MAX_LAYERS

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Family = Literal["llama", "mistral"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        """As `extra="forbid"`, but the error knows which keys would have been right."""
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError("unknown_key", "unknown key", {"key": key, "known": list(cls.model_fields)})
        return value


AnyModel = TypeVar("AnyModel", bound=Model)


class Shape(Model):
    """What the DAG needs to know of a model before a weight is read. `strata pin` writes it, init checks it."""

    family: Family = Field(description="model family, as `model_type` in config.json")
    layers: int = Field(gt=0, le=MAX_LAYERS, description="number of transformer layers")
    parameters: int = Field(gt=0, description="number of parameters, tied ones counted once")
    bytes: int = Field(gt=0, description="size of the tensors as init stores them, without headers")
    dtype: Dtype = Field(description="stored dtype; bfloat16 for a dequantised GGUF")


class Source(Model):
    sha256: Sha256 | None = Field(
        default=None,
        description="of the file; of several, over the sorted lines `<sha256>  <member>`. `strata pin` fills it in",
    )
    shape: Shape | None = Field(default=None, description="for a model; `strata pin` fills it in")


class PackageSource(Source):
    """Files inside the archive of a wheel or sdist. The archive is read, never built or installed."""

    package: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$", description="`name==version`")
    file: str = Field(min_length=1, description="a member of the archive, or a glob for several")


class HubSource(Source):
    """A model repository on the Hugging Face hub."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="`owner/name`")
    revision: str | None = Field(default=None, description="commit of 40 hex digits; `strata pin` resolves a branch")

    @property
    def is_pinned(self) -> bool:
        """A commit cannot move; a branch or tag can."""
        return re.fullmatch("[0-9a-f]{40}", self.revision or "") is not None


class PathSource(Source):
    """A local file or folder."""

    path: str = Field(min_length=1, description="relative to the working directory, or absolute")
    file: str | None = Field(default=None, description="in a folder: which files, as a glob; default all")

    @property
    def location(self) -> str:
        return str(Path(self.path).expanduser())


class Init(Model):
    source: Name = Field(description="a name in `sources`")
    architecture: Literal["llama"] | None = Field(
        default=None,
        description="put a Mistral checkpoint's weights under a Llama config; default: as the source has it",
    )


class InitVariant(Model):
    """A base model: a source in canonical form, one shard per layer."""

    init: Init


class Dus(Model):
    """Depth up-scaling: layers 0..n-drop-1, then drop..n-1 (SOLAR 10.7B)."""

    method: Literal["dus"]
    drop: int = Field(ge=0, description="layers cut off the end of the first copy and off the start of the second")


class Interlocked(Model):
    """Interlocked DUS: `group` layers of the first copy, then `group` of the second, and so on (iDUS)."""

    method: Literal["interlocked"]
    drop: int = Field(ge=0, description="as for `dus`")
    group: int = Field(gt=0, description="layers taken at a time; 1 is iDUS-1layer, n - drop is plain DUS")


def by_key(*keys: str) -> Discriminator:
    """Tell the members of a union apart by the one key that names them. Tags start with @, as no key does."""

    def tag(value: Any) -> str | None:
        return next((f"@{key}" for key in keys if key in value), None) if isinstance(value, dict) else None

    return Discriminator(tag, custom_error_type="which", custom_error_message=f"one of the keys {', '.join(keys)}")


def by_key_value(key: str, *values: str) -> Discriminator:
    """Tell the members of a union apart by what `key` says."""

    def tag(value: Any) -> str | None:
        return f"@{value.get(key)}" if isinstance(value, dict) else None

    return Discriminator(
        tag,
        custom_error_type="by_value",
        custom_error_message="{allowed}",
        custom_error_context={"key": key, "allowed": ", ".join(values)},
    )


Merge = Annotated[
    Annotated[Dus, Tag("@dus")] | Annotated[Interlocked, Tag("@interlocked")],
    by_key_value("method", "dus", "interlocked"),
]


class MergeVariant(Model):
    """A checkpoint whose layers are re-stacked from its parents'."""

    parent: Name | None = Field(default=None, description="short for `parents: [parent]`")
    parents: list[Name] | None = Field(default=None, min_length=1, description="names of variants")
    merge: Merge = Field(description="method and its parameters")

    @model_validator(mode="after")
    def _one_parent(self) -> MergeVariant:
        if (self.parent is None) == (self.parents is None):
            raise PydanticCustomError("strata", "give either `parent` or `parents`")
        if len(self.parent_names) != 1:
            raise PydanticCustomError("strata", "this method takes exactly one parent")
        return self

    @property
    def parent_names(self) -> tuple[str, ...]:
        return (self.parent,) if self.parent is not None else tuple(self.parents or ())


AnySource = Annotated[
    Annotated[PackageSource, Tag("@package")] | Annotated[HubSource, Tag("@hub")] | Annotated[PathSource, Tag("@path")],
    by_key("package", "hub", "path"),
]
AnyVariant = Annotated[
    Annotated[InitVariant, Tag("@init")] | Annotated[MergeVariant, Tag("@merge")], by_key("init", "merge")
]


class Config(Model):
    """A Strata experiment."""

    device: Device = Field(default="cpu", description="what evaluation runs on; cuda makes its jobs ask for a GPU")
    sources: dict[Name, AnySource] = Field(description="pinned inputs, by name")
    variants: dict[Name, AnyVariant] = Field(min_length=1, description="rows of the result table, by name")
    suites: list[str] = Field(
        default=["quick"],
        description="evaluation suites: names in workflow/suites, or paths of .yaml files from the working directory",
    )


def config_files(given: Sequence[str | Path], replace: bool = False) -> list[str]:
    """The files to read, later ones over earlier ones, as Snakemake does: config.yaml, then those of `--configfile`.

    Args:
        given: what the command line names.
        replace: leave config.yaml out (Snakemake's `--replace-workflow-config`).
    """
    own, files = Path("config.yaml"), [str(file) for file in given]
    is_given = own.resolve() in {Path(file).resolve() for file in files}
    return files if files and (is_given or replace or not own.exists()) else [str(own), *files]


def load(files: Sequence[str | Path]) -> tuple[Config, Document]:
    """The config that these files give, later ones laid over earlier ones, and where each value stands.

    Raises:
        ConfigError: see `document.read`; an unknown key, a missing key, a value of the wrong type.
    """
    documents = [read(Path(file)) for file in files]
    document = documents[0]
    for above in documents[1:]:
        document = overlay(document, above)
    _refuse_code_and_secrets(document)
    return validate(Config, document), document


def validate(schema: type[AnyModel], document: Document) -> AnyModel:
    """`document` as a `schema`. Raises ConfigError with the place, the rule and the nearest valid key."""
    try:
        return schema.model_validate(document.value)
    except ValidationError as error:
        problems = [_explain(item, document) for item in error.errors(include_url=False)]
        if len(problems) == 1:
            raise problems[0] from None
        raise ConfigError(
            f"{len(problems)} problems\n" + "\n".join(str(problem) for problem in problems[:10])
        ) from None


def _refuse_code_and_secrets(document: Document) -> None:
    if "__use_yte__" in document.value:
        raise ConfigError(
            "`__use_yte__` makes a config run code",
            where=document.where(("__use_yte__",)),
            todo="write the values out; templating is not supported",
        )

    def walk(value: Any, path: Key) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, (*path, name))
        elif isinstance(value, list):
            for number, item in enumerate(value):
                walk(item, (*path, number))
        elif isinstance(value, str) and re.search(r"\bhf_[A-Za-z0-9]{20,}", value):
            raise ConfigError(
                "a hub token stands in the config",
                where=document.where(path),
                todo="remove and revoke it; set HF_TOKEN in the environment instead",
            )

    walk(document.value, ())


def _explain(item: ErrorDetails, document: Document) -> ConfigError:
    path = _path_in(item["loc"])
    where, kind, context = document.where(path), item["type"], item.get("ctx", {})
    got = "" if isinstance(item["input"], dict | list) else repr(item["input"])
    if kind == "unknown_key":
        key, known = context["key"], context["known"]
        near = difflib.get_close_matches(key, known, n=1)
        return ConfigError(
            f"unknown key `{key}`",
            where=document.where((*path, key)),
            expected=", ".join(known),
            todo=f"write `{near[0]}`" if near else "remove it",
        )
    if kind == "missing":
        return ConfigError(f"missing key `{path[-1]}`", where=document.where(path[:-1]), todo=f"add `{path[-1]}:`")
    if item["loc"] and item["loc"][-1] == "[key]":
        return ConfigError(
            "not a valid name",
            where=where,
            expected="1 to 64 of a-z, 0-9, _ and -, not starting with _ or -",
            got=repr(item["input"]),
        )
    if kind == "by_value":
        key = context["key"]
        value = item["input"].get(key) if isinstance(item["input"], dict) else item["input"]
        what = f"missing key `{key}`" if value is None else f"unknown {key}"
        return ConfigError(what, where=where, expected=item["msg"], got="" if value is None else repr(value))
    if kind == "which":
        found = ", ".join(item["input"]) if isinstance(item["input"], dict) else repr(item["input"])
        return ConfigError("cannot tell what this is", where=where, expected=item["msg"], got=found or "nothing")
    expected = _PATTERNS.get(str(path[-1])) if kind == "string_pattern_mismatch" else None
    return ConfigError("not a valid value", where=where, expected=expected or _sentence(item["msg"]), got=got)


_PATTERNS = {"sha256": "64 hex digits", "package": "name==version", "hub": "owner/name"}


def _sentence(message: str) -> str:
    if message.startswith("Input should be a valid dictionary"):
        return "a mapping, {key: value}"
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _path_in(loc: Sequence[str | int]) -> Key:
    """pydantic's location without the union tags and key marks it puts in."""
    return tuple(part for part in loc if part != "[key]" and not str(part).startswith("@"))
