"""Convert: a checkpoint of the Llama family as a GGUF file in float16, through the `gguf` package.

llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves: the rows of queries and keys are
put in that order. Vectors stay float32, as llama.cpp's own converter writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata import families, store
from strata.chat import begin_of_text, own_template
from strata.checkpoint import Checkpoint, open_checkpoint, verify
from strata.errors import CheckpointError, StoreError
from strata.llamacpp.library import check_tokens, is_here
from strata.llamacpp.vocabulary import Vocabulary, vocabulary
from strata.loading import ends_of, go_offline
from strata.progress import bar
from strata.recipe import Recipe
from strata.store import Built, Object
from strata.tensors import Tensor

FILE = "model.gguf"
DIGEST = "strata.checkpoint.digest"  # a key of the file: the content digest of the checkpoint that it was made from
_F16_MOST = 65504.0
_EXPANDED: dict[str, Any] = {"F32": "<f4", "F16": "<f2"}


def convert(root: Path, recipe: Recipe) -> Object:
    """Write the GGUF file of a checkpoint, and publish it.

    Raises:
        StoreError: the checkpoint is missing or damaged; every byte of it is checked.
        CheckpointError: it has what llama.cpp would compute otherwise, or a number that float16 cannot hold.
    """

    def build(folder: Path) -> Built:
        found = store.require(root, recipe.parents[0], verify)
        return _build(found, folder)

    drop_stale(root, recipe)
    return store.publish(root, recipe, build)


def drop_stale(root: Path, recipe: Recipe) -> None:
    """Put aside a GGUF file of other weights than its checkpoint has now: a trained one may have been built anew."""
    with suppress(StoreError):  # what is damaged or missing is found by whoever needs it
        made, checkpoint = store.find(root, recipe.id), store.find(root, recipe.parents[0])
        if made and checkpoint and made.facts["checkpoint_digest"] != checkpoint.digest:
            store.reject(root, recipe.id, f"of other weights than {checkpoint.id} has now")


def open_tokenizer(found: Object) -> Any:
    """The tokenizer of a checkpoint, as transformers opens it."""
    go_offline()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(found.path, local_files_only=True, trust_remote_code=False)


def _build(found: Object, folder: Path) -> Built:
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    opened, tokenizer = open_checkpoint(found), open_tokenizer(found)
    config = opened.config
    writer = GGUFWriter(folder / FILE, "llama")
    _describe(writer, config, found)
    _add_vocabulary(writer, vocabulary(tokenizer, families.size(config, "vocab_size")), tokenizer)
    _add_ends(writer, sorted(ends_of(found) - {tokenizer.eos_token_id}), found.path)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, opened.layers)
    tensors = [*_extra(config, found.path), *_tensors(opened, names)]
    for name, shape, width, _ in tensors:
        writer.add_tensor_info(name, shape, np.dtype(f"<f{width}"), math.prod(shape) * width)
    lost = 0.0
    with closing(writer), bar("gguf", len(tensors), "tensor") as progress:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _, width, read in tensors:
            exact = read()
            stored = _narrowed(exact, name, found.path) if width == 2 else exact
            lost = max(lost, _error(exact, stored))
            writer.write_tensor_data(stored)
            progress.update()
    is_checked = is_here()
    if is_checked:
        check_tokens(folder / FILE, tokenizer, found.path)
    facts = {"checkpoint": found.id, "checkpoint_digest": found.digest, "type": "f16", "rounding": lost}
    return Built(facts=facts | {"layers": opened.layers, "tensors": len(tensors), "tokens_checked": is_checked})


def _describe(writer: Any, config: Mapping[str, Any], found: Object) -> None:
    """Write what the file says of the model; no name, as it is one file for all variants of one recipe."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

    writer.add_type("model")
    writer.add_string(DIGEST, found.digest)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    window = config.get("sliding_window", 4096 if config["model_type"] == "mistral" else None)  # transformers' default
    length = config["max_position_embeddings"]
    writer.add_block_count(families.depth(config))
    writer.add_context_length(min(length, window) if window else length)  # llama.cpp has no window here
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(_groups(config))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    rope = _rope(config)
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.get("hidden_act", "silu") != "silu":
        raise _unlike(found.path, "hidden_act", "silu", config["hidden_act"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are rotated: transformers 5's table, or the two keys that it was before."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    if "rope_theta" in config:
        rope.setdefault("rope_theta", config["rope_theta"])
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise _unlike("config.json", "rope_type", "default, linear or llama3", rope["rope_type"])
    return rope


def _groups(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _add_vocabulary(writer: Any, words: Vocabulary, tokenizer: Any) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.model == "llama":
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.space)
    else:
        writer.add_token_merges(words.merges)
        writer.add_add_space_prefix(False)
    for kind in ("bos", "eos", "unk", "pad"):
        id = getattr(tokenizer, f"{kind}_token_id")
        if id is not None:
            getattr(writer, f"add_{kind}_token_id")(id)
    writer.add_add_bos_token(bool(begin_of_text(tokenizer)))
    end = tokenizer.eos_token_id
    writer.add_add_eos_token(end is not None and tokenizer("x", verbose=False).input_ids[-1:] == [end])
    if template := own_template(tokenizer):
        writer.add_chat_template(template)


def _add_ends(writer: Any, ends: list[int], place: Path) -> None:
    """The tokens that end an answer besides the tokenizer's: a GGUF has two more names for such."""
    if len(ends) > 2:
        raise _unlike(place, "number of tokens that end an answer", "up to three", len(ends) + 1)
    for add, end in zip((writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False):
        add(end)


def _tensors(opened: Checkpoint, names: Any) -> Iterator[tuple[str, tuple[int, ...], int, Any]]:
    """(name, shape, bytes of an element, what reads it in float32) of each tensor, in the order of the layers."""
    places = sorted(
        opened.tensors.items(), key=lambda item: -1 if (n := families.split_name(item[0])[0]) is None else n
    )
    for name, stored in places:
        base, _, kind = name.rpartition(".")
        new = names.get_name(base)
        if new is None:
            raise _unlike(opened.path, "tensor", "one of Llama's", name)
        heads = {"q_proj": opened.config["num_attention_heads"], "k_proj": _groups(opened.config)}.get(
            base.split(".")[-1]
        )

        def read(stored: Any = stored, heads: int | None = heads) -> NDArray[np.float32]:
            values: NDArray[np.float32] = _read(opened.path / stored.file, stored.tensor)
            return values if heads is None else _permuted(values, heads)

        yield f"{new}.{kind}", stored.tensor.shape, 2 if len(stored.tensor.shape) > 1 else 4, read


def _extra(config: Mapping[str, Any], place: Path) -> Iterator[tuple[str, tuple[int, ...], int, Any]]:
    """Llama 3's scaling of positions, which a GGUF has as a tensor: what each frequency is divided by."""
    rope = _rope(config)
    if rope["rope_type"] == "llama3":
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        yield "rope_freqs.weight", (width // 2,), 4, lambda: _llama3(rope, width)


def _llama3(rope: Mapping[str, Any], width: int) -> NDArray[np.float32]:
    """Divisors of the frequencies (Llama 3.1's `rope_scaling`): none for short waves, the factor for long ones."""
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def _read(file: Path, tensor: Tensor) -> NDArray[np.float32]:
    with file.open("rb") as stream:
        stream.seek(tensor.begin)
        data = stream.read(tensor.size)
    if tensor.dtype == "BF16":
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(data, _EXPANDED[tensor.dtype]).astype("<f4")
    return values.reshape(tensor.shape)


def _permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows (heads, 2, half) as (heads, half, 2): the two that are rotated together stand side by side."""
    rows = values.shape[0]
    return np.ascontiguousarray(
        values.reshape(heads, 2, rows // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def _narrowed(exact: NDArray[np.float32], name: str, place: Path) -> NDArray[np.float16]:
    most = float(np.abs(exact).max())
    if not most <= _F16_MOST:
        raise CheckpointError(
            "float16 cannot hold a weight", where=f"{place}, {name}", expected=f"at most {_F16_MOST:.0f}", got=most,
            todo="remove `gguf` of this variant",
        )  # fmt: skip
    return exact.astype("<f2")


def _error(exact: NDArray[np.float32], stored: NDArray[Any]) -> float:
    """The largest change that float16 has made, of the largest number of the tensor."""
    if stored is exact:
        return 0.0
    most = float(np.abs(exact).max())
    return float(np.abs(exact - stored.astype(np.float32)).max()) / most if most else 0.0


def _unlike(where: object, what: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        f"llama.cpp's Llama has no such {what}", where=where, expected=expected, got=got,
        todo="remove `gguf` of this variant",
    )  # fmt: skip
