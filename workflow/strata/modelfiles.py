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
            expected="one",
            got=", ".join(path.relative_to(folder).as_posix() for path in found[:5]),
            todo="name the one you mean: `file:` for a package or a folder, or a narrower `path:`",
        )
    return found[0] if found else None


def weight_files(home: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a model: those its index names, which must lie beside it, with the tensors that it says
    are in each; or the only one there is, of which nothing is said.

    Raises:
        CheckpointError: an index that names what is not there, or contradicts a single file; a link to elsewhere.
        SourceError: there are no safetensors. Pickled weights are never opened.
    """
    index, single = home / "model.safetensors.index.json", home / "model.safetensors"
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        said: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items() if isinstance(weight_map, dict) else ():
            said.setdefault(str(shard), set()).add(tensor)
        for name in sorted(said) or [""]:
            if Path(name).name != name or not name.endswith(".safetensors") or not (home / name).is_file():
                raise CheckpointError(
                    "the index names a shard that is not here",
                    where=index,
                    expected="a .safetensors file beside it",
                    got=repr(name),
                )
        if single.is_file() and single.name not in said:
            raise CheckpointError(
                "both an index and a single file",
                where=home,
                expected="one of them",
                got=f"{index.name}, {single.name}",
                todo="remove one of them",
            )
        return {_inside(home / name): said[name] for name in sorted(said)}
    if single.is_file():
        return {_inside(single): None}
    raise SourceError(
        "no safetensors weights",
        where=home,
        expected="model.safetensors, or an index with its shards",
        got=", ".join(sorted(path.name for path in home.iterdir())[:10]),
        todo="convert pickled weights with transformers' save_pretrained; they are never opened here",
    )


def _inside(file: Path) -> Path:
    """The file, unless it is a link that leaves its model: as in the hub's cache, it may lead to the `blobs` there."""
    home, place = file.parent.resolve(), file.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not (place.is_relative_to(home) or place.is_relative_to(blobs)):
        raise CheckpointError("a link that leaves the model's folder", where=file, expected=f"below {home}", got=place)
    return file


def read_config(file: Path) -> dict[str, Any]:
    """A model's config.json. Raises SourceError for one that needs code of its own or is quantised."""
    config = read_object(file)
    for key, todo in (("auto_map", "use a built-in family"), ("quantization_config", "use the unquantised weights")):
        if config.get(key):
            raise SourceError(
                "this model cannot be used as it is", where=file, expected="a model without it", got=key, todo=todo
            )
    return config


def check_tokenizer(home: Path, vocabulary: int) -> None:
    """Raise SourceError for a tokenizer that is missing, has code of its own, or has more tokens than embeddings."""
    config, fast = home / "tokenizer_config.json", home / "tokenizer.json"
    if not config.is_file() or not (fast.is_file() or (home / "tokenizer.model").is_file()):
        raise SourceError(
            "no tokenizer",
            where=home,
            expected="tokenizer_config.json and tokenizer.json or tokenizer.model",
            got=", ".join(sorted(path.name for path in home.iterdir())[:10]),
        )
    if read_object(config).get("auto_map"):
        raise SourceError(
            "this model cannot be used as it is",
            where=config,
            expected="a tokenizer without code of its own",
            got="auto_map",
        )
    if fast.is_file():
        tokenizer = read_object(fast)
        try:
            vocab = tokenizer["model"].get("vocab", {})
            ids = [*vocab.values()] if isinstance(vocab, dict) else [*range(len(vocab))]
            ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
            if any(type(id) is not int for id in ids):
                raise TypeError("an id that is not a whole number")
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                "not a usable tokenizer", where=fast, expected="a model with a vocab, and ids", got=error
            ) from None
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
        SourceError: no GGUF; a family whose GGUF is not read; or the model scales its positions, which transformers
            does not read from a GGUF and leaves out.
    """
    from gguf import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]
        """Past the end of the file gguf reads nothing, without an error: for a list of 2^60 numbers, for ever."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            found = super()._get(offset, dtype, count, *order, **named)
            if len(found) != count:
                raise ValueError("it ends before what its counts say")
            return found

    try:
        reader = Reader(file)
        field = reader.get_field("general.architecture")
        family = field.contents() if field else None
    except Exception as error:  # it raises what numpy raises
        raise SourceError(
            "not a GGUF file that can be read",
            where=file,
            expected="GGUF",
            got=f"{type(error).__name__}: {error}"[:300],
        ) from None
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
            expected="positions as they are",
            got=", ".join(scaled[:5]),
            todo="use the model's safetensors",
        )
    return reader, family
