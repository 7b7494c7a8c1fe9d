"""What every schema is built on: strict models, names, and unions whose errors say which keys would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from strata.document import Document, Key
from strata.errors import ConfigError

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # relative to others
Share = Annotated[float, Field(ge=0, le=1)]
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
                raise PydanticCustomError(
                    "unknown_key", "unknown key", {"key": key, "known": list(cls.model_fields), "given": list(value)}
                )
        return value


AnyModel = TypeVar("AnyModel", bound=Model)


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


def by_form(expected: str) -> Discriminator:
    """Tell the members of a union apart by their YAML form: @list, @mapping or @plain."""

    def tag(value: Any) -> str:
        return "@list" if isinstance(value, list) else "@mapping" if isinstance(value, dict | Model) else "@plain"

    return Discriminator(tag, custom_error_type="form", custom_error_message=expected)


def validate(schema: type[AnyModel], document: Document) -> AnyModel:
    """`document` as a `schema`. Raises ConfigError with the place, the rule and the nearest valid key."""
    try:
        return schema.model_validate(document.value)
    except ValidationError as error:
        problems = [_explain(item, document) for item in error.errors(include_url=False)]
        if len(problems) == 1:
            raise problems[0] from None
        raise ConfigError(
            f"{len(problems)} problems\n" + "\n".join(str(problem) for problem in problems[:10]),
            todo="mend each of them",
        ) from None


def _explain(item: ErrorDetails, document: Document) -> ConfigError:
    path = _path_in(item["loc"])
    where, kind, context = document.where(path), item["type"], item.get("ctx", {})
    got = "" if isinstance(item["input"], dict) else repr(item["input"])[:100]
    if kind == "unknown_key":
        key, known = context["key"], context["known"]
        near = difflib.get_close_matches(key, [name for name in known if name not in context["given"]], n=1)
        return ConfigError(
            f"unknown key `{key}`",
            where=document.where((*path, key)),
            expected=", ".join(known),
            got=key,
            todo=f"write `{near[0]}`" if near else "remove it",
        )
    if kind == "missing":
        return ConfigError(
            f"missing key `{path[-1]}`",
            where=document.where(path[:-1]),
            expected="that key",
            got="none",
            todo=f"add `{path[-1]}:`",
        )
    if item["loc"] and item["loc"][-1] == "[key]":
        return ConfigError(
            "not a valid name",
            where=where,
            expected="1 to 64 of a-z, 0-9, _ and -, not starting with _ or -",
            got=repr(item["input"]),
        )
    if kind == "by_value":
        key = context["key"]
        if not isinstance(item["input"], dict):
            example = f"a mapping, such as {{{key}: {item['msg'].partition(', ')[0]}, ...}}"
            return ConfigError("not a valid value", where=where, expected=example, got=repr(item["input"]))
        value = item["input"].get(key)
        what = f"missing key `{key}`" if value is None else f"unknown {key}"
        return ConfigError(what, where=where, expected=item["msg"], got="" if value is None else repr(value))
    if kind == "form":
        return ConfigError("not a valid value", where=where, expected=item["msg"], got=repr(item["input"])[:200])
    if kind == "which":
        found = ", ".join(item["input"]) if isinstance(item["input"], dict) else repr(item["input"])
        return ConfigError("cannot tell what this is", where=where, expected=item["msg"], got=found or "nothing")
    expected = _PATTERNS.get(str(path[-1])) if kind == "string_pattern_mismatch" else None
    return ConfigError("not a valid value", where=where, expected=expected or _sentence(item["msg"]), got=got)


_PATTERNS = {"sha256": "64 hex digits", "package": "name==version", "hub": "owner/name", "dataset": "owner/name"}


def _sentence(message: str) -> str:
    if message.startswith("Input should be a valid dictionary"):
        return "a mapping, {key: value}"
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _path_in(loc: Sequence[str | int]) -> Key:
    """pydantic's location without the union tags and key marks it puts in."""
    return tuple(part for part in loc if part != "[key]" and not str(part).startswith("@"))
