"""The files of a foreign model: which they are, and whether they may be used. No weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from strata.errors import CheckpointError, SourceError
from strata.jsonfile import read_object

GGUF_FAMILIES = ("llama",)  # a Mistral's GGUF calls itself a llama too


def find_model(folder: Path) -> Path | None:
    """The one model below a folder: its .gguf file or its config.json. None when there is no model.

    Raises:
        SourceError: there are several, and choosing one would be a guess.
    """
    found = sorted([*folder.rglob("*.gguf"), *folder.rglob("config.json")])
    if len(found) > 1:
        raise SourceError(
            "several models in one source",
            where=folder,
            got=", ".join(path.relative_to(folder).as_posix() for path in found[:5]),
            todo="name the one you mean: `file:` for a package or a folder, or a narrower `path:`",
        )
    return found[0] if found else None


def weight_files(home: Path) -> list[Path]:
    """The safetensors files of a model: those its index names, which must lie beside it, or the only one there is.

    Raises:
        CheckpointError: an index that names what is not there, or contradicts a single file.
        SourceError: there are no safetensors. Pickled weights are never opened.
    """
    index, single = home / "model.safetensors.index.json", home / "model.safetensors"
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        for name in sorted(map(str, names)) or [""]:
            if Path(name).name != name or not name.endswith(".safetensors") or not (home / name).is_file():
                raise CheckpointError("the index names a shard that is not here", where=index, got=repr(name))
        if single.is_file() and single.name not in names:
            raise CheckpointError("both an index and a single file", where=home, todo="remove one of them")
        return [home / name for name in sorted(names)]
    if single.is_file():
        return [single]
    raise SourceError(
        "no safetensors weights",
        where=home,
        expected="model.safetensors, or an index with its shards",
        got=", ".join(sorted(path.name for path in home.iterdir())[:10]),
        todo="convert pickled weights with transformers' save_pretrained; they are never opened here",
    )


def read_config(file: Path) -> dict[str, Any]:
    """A model's config.json. Raises SourceError for one that needs code of its own or is quantised."""
    config = read_object(file)
    for key, todo in (("auto_map", "use a built-in family"), ("quantization_config", "use the unquantised weights")):
        if config.get(key):
            raise SourceError("this model cannot be used as it is", where=file, got=key, todo=todo)
    return config


def check_tokenizer(home: Path, vocabulary: int) -> None:
    """Raise SourceError for a tokenizer that is missing, has code of its own, or has more tokens than embeddings."""
    config, fast = home / "tokenizer_config.json", home / "tokenizer.json"
    if not config.is_file() or not (fast.is_file() or (home / "tokenizer.model").is_file()):
        raise SourceError(
            "no tokenizer", where=home, expected="tokenizer_config.json and tokenizer.json or tokenizer.model"
        )
    if read_object(config).get("auto_map"):
        raise SourceError("this model cannot be used as it is", where=config, got="auto_map")
    if fast.is_file():
        tokenizer = read_object(fast)
        vocab = tokenizer["model"].get("vocab", {})
        ids = [*vocab.values()] if isinstance(vocab, dict) else [*range(len(vocab))]
        ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
        if max(ids, default=0) >= vocabulary:
            raise SourceError(
                "the tokenizer has tokens without an embedding",
                where=fast,
                expected=f"ids below {vocabulary}",
                got=max(ids),
            )


def open_gguf(file: Path) -> tuple[Any, str | None]:
    """gguf's reader of a file, and the family it names.

    Raises:
        SourceError: a family whose GGUF is not read; or the model scales its positions, which transformers does not
            read from a GGUF and leaves out.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    field = reader.get_field("general.architecture")
    family = field.contents() if field else None
    if family not in GGUF_FAMILIES:
        raise SourceError(
            "a GGUF of this family is not read", where=file, expected=", ".join(GGUF_FAMILIES), got=family,
            todo="use the model's safetensors",
        )  # fmt: skip
    scaled = [key for key in reader.fields if key.startswith(f"{family}.rope.scaling.")]
    scaled += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    if scaled:
        raise SourceError(
            "scaled positions in a GGUF are not read",
            where=file,
            got=", ".join(scaled[:5]),
            todo="use the model's safetensors",
        )
    return reader, family
