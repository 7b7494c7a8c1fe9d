"""Recipes and ids: what an artefact is made from, and the name that follows from it.

A recipe holds no variant names, no paths and no resources, so that renaming or moving never changes an id.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from strata.errors import UsageError

# The folder that holds each operation's results. The operation is also the prefix of their ids.
KINDS = {
    "fetch": "sources",
    "init": "checkpoints",
    "analyze": "analyses",
    "screen": "screens",
    "race": "screens",
    "merge": "checkpoints",
    "tokenize": "tokens",
    "reference": "references",
    "pretrain": "checkpoints",
    "sft": "checkpoints",
    "dpo": "checkpoints",
    "encode": "requests",
    "evaluate": "evaluations",
    "gguf": "gguf",
    "quantize": "gguf",
}

# Raised when an operation gives another result for the same parameters: every id that depends on it changes.
VERSIONS = dict.fromkeys(KINDS, 1) | {"init": 2, "evaluate": 2}

# Same id, other content is an error for these; for the rest the first published object wins.
DETERMINISTIC = {"fetch", "init", "merge", "tokenize", "encode", "gguf"}

_ID = re.compile(f"({'|'.join(KINDS)})-[0-9a-f]{{32}}")

# These change weights, so a tensor of theirs is nobody's copy.
TRAINING = {"pretrain", "sft", "dpo"}


def canonical(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """One normalised operation. `parents` are ids of checkpoints, `sources` of what else it reads: fetched files,
    tokens, an analysis, a model's loss to get back to."""

    operation: str
    parameters: dict[str, Any] = field(hash=False)
    parents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    version: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", self.version or VERSIONS[self.operation])

    @cached_property
    def canonical(self) -> str:
        return canonical(self.to_json())

    @cached_property
    def id(self) -> str:
        """`<operation>-<32 hex>`."""
        return f"{self.operation}-{digest(self.canonical)[:32]}"

    @property
    def kind(self) -> str:
        return KINDS[self.operation]

    def to_json(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "version": self.version,
            "parameters": self.parameters,
            "parents": list(self.parents),
            "sources": list(self.sources),
        }

    @staticmethod
    def from_json(data: str | dict[str, Any]) -> Recipe:
        """The recipe in `data`. Raises UsageError when it is not one, or not in its canonical form."""
        try:
            value = json.loads(data) if isinstance(data, str) else data
            recipe = Recipe(
                value["operation"],
                value["parameters"],
                tuple(value["parents"]),
                tuple(value["sources"]),
                value["version"],
            )
            known = recipe.operation in KINDS and recipe.to_json() == value and isinstance(recipe.parameters, dict)
            known = known and all(_ID.fullmatch(id) for id in (*recipe.parents, *recipe.sources))  # they become paths
            _ = recipe.id  # raises ValueError for a NaN, and for half of a surrogate pair
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            raise UsageError(
                "not a recipe",
                where="the job's first argument",
                expected="canonical JSON",
                got=str(data)[:200],
                todo="recipes are written by the workflow",
            )
        return recipe


def kind_of(id: str) -> str:
    """The folder of an id. Raises UsageError for an id of no known operation."""
    operation = id.partition("-")[0]
    if operation not in KINDS:
        raise UsageError("not an id", where="an id of the store", expected="<operation>-<32 hex>", got=repr(id))
    return KINDS[operation]
