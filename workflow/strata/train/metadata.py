"""Metadata of a snapshot, which torch writes as a pickle: read by known names alone, so that no file runs anything.

Of what it lists, all is tensors, which torch reads as weights alone; other objects it would unpickle without asking.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from strata.errors import TrainingError

_TYPES = (
    "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)  # fmt: skip
KNOWN = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _TYPES),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13's name for it
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class Reader(FileSystemReader):  # type: ignore[misc]
    """torch's reader of distributed checkpoints, with another way to open their metadata."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Raises TrainingError for a file that names what torch does not write there."""
        file = Path(self.path) / ".metadata"
        try:
            with file.open("rb") as stream:
                found = _Unpickler(stream).load()
            if not isinstance(found, Metadata):
                raise pickle.UnpicklingError(type(found).__name__)
            listed = found.state_dict_metadata.values()
            if others := {type(item).__name__ for item in listed if not isinstance(item, TensorStorageMetadata)}:
                raise pickle.UnpicklingError(", ".join(sorted(others)))
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise TrainingError(
                "the metadata of a snapshot is not what torch writes", where=file, expected="a table of tensors",
                got=error, todo="remove the snapshot; training goes on from the one before",
            ) from None  # fmt: skip
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found
