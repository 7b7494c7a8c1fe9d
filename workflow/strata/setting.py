"""Setting: what the stages of a config have in common, and the places in it that their errors tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strata.document import Document, Key
from strata.errors import ConfigError
from strata.job import Job
from strata.schema import Device


@dataclass(frozen=True)
class Setting:
    """What the stages of a config have in common. `tested`: id of a fetched source -> the suite that it belongs to."""

    device: Device
    document: Document
    sources: Mapping[str, Job]
    tested: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where in a config a stage stands."""

    document: Document
    key: Key

    def error(
        self, what: str, *entry: str | int, expected: object = "", got: object = "", todo: str = ""
    ) -> ConfigError:
        where = self.document.where((*self.key, *entry))
        return ConfigError(what, where=where, expected=expected, got=got, todo=todo)


def data_of(setting: Setting, name: str, place: Place, *entry: str | int) -> Job:
    """The job that fetches a source of texts or rows. Raises ConfigError where there is none of that name."""
    if name not in setting.sources:
        raise place.error("no such source", *entry, expected=", ".join(setting.sources), got=name)
    if setting.sources[name].shape is not None:
        raise place.error(f"`{name}` is a model, not data", *entry, expected="a source without a shape")
    return setting.sources[name]
