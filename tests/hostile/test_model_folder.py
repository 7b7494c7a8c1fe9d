"""B17-B44: a model's folder that lies about what is in it, at the three doors that a model comes in by.

The doors are those of `strata init`, which the workflow calls on what was fetched, `strata pin`, and `strata merge FILE`.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks import (
    Spoil,
    add,
    copy_of,
    edit_json,
    fetch_and_init,
    made,
    merge_of,
    pin_of,
    refused,
    run,
    sharded,
    weights,
)  # fmt: skip
from test_safetensors import Bomb

NORM, UP = "model.norm.weight", "model.layers.2.mlp.up_proj.weight"
EVIL = "raise SystemExit('foreign code ran')"


def number_at(name: str, element: int, word: int) -> Spoil:
    """Put a bfloat16, told by its bits, into a tensor."""

    def edit(table: dict[str, Any], data: bytearray) -> None:
        at = table[name]["data_offsets"][0] + 2 * element
        data[at : at + 2] = struct.pack("<H", word)

    return weights(edit)


def renamed(old: str, new: str) -> Spoil:
    return weights(lambda table, data: table.update({new: table.pop(old)}))


def widened(table: dict[str, Any], data: bytearray) -> None:
    """A vocabulary of another model: the last tensor of its rows goes, and a longer one comes."""
    old = table.pop("lm_head.weight")
    begin, end = old["data_offsets"]
    assert begin == 0 or end == len(data)
    content = bytes(data[begin:end])
    del data[begin:end]
    for item in table.values():
        if isinstance(item.get("data_offsets"), list):
            item["data_offsets"] = [offset - (end - begin if begin == 0 else 0) for offset in item["data_offsets"]]
    add(table, data, "lm_head.weight", "BF16", [273, 32], content + b"\0" * 64)


def in_float32(table: dict[str, Any], data: bytearray) -> None:
    table["model.layers.1.input_layernorm.weight"].update(dtype="U16")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def foreign_code(name: str, **mapped: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        edit_json(name, auto_map=mapped)(folder)
        (folder / "evil.py").write_text(EVIL)

    return spoil


def names(shard: str) -> Spoil:
    """An index that says the first tensor is in this file."""

    def edit(folder: Path, weight_map: dict[str, str]) -> None:
        (folder.parent / "evil.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
        weight_map[NORM] = shard

    return sharded(edit)


def holding(name: str, text: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def two_shards_of_one(folder: Path, weight_map: dict[str, str]) -> None:
    os.link(folder / "a.safetensors", folder / "b.safetensors")
    weight_map[NORM] = "b.safetensors"


def both(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors").write_bytes((folder / "a.safetensors").read_bytes())


def in_place_of_weights(make: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        make(folder / "model.safetensors")

    return spoil


CONFIG = "not a usable model config"
SIZES = ["config.json, num_hidden_layers", "a whole number from 1 to"]
MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "sliding_window": None}
HOSTILE: list[tuple[str, str, str, Spoil, int, list[str]]] = [
    ("B17", "a NaN", "i", number_at(UP, 33, 0x7FC0), 5, ["not finite", f"tensor {UP}, element 33"]),
    ("B17", "an infinity", "i", number_at(NORM, 0, 0xFF80), 5, ["not finite", f"tensor {NORM}, element 0"]),
    ("B19", "a config of a layer more", "ipm", edit_json("config.json", num_hidden_layers=5), 5, ["layer count", "expected: 5", "got:      4 layers"]),
    ("B19", "a config of a layer less", "ipm", edit_json("config.json", num_hidden_layers=3), 5, ["layer count", "expected: 3", "got:      4 layers"]),
    ("B20", "a tensor under another name", "ipm", renamed(NORM, "norm.weight"), 5, ["missing model.norm.weight", "not expected norm.weight"]),
    ("B20", "a tensor too many", "ipm", weights(lambda t, d: add(t, d, "extra", "BF16", [1], b"\0\0")), 5, ["not expected extra"]),
    ("B20", "many tensors too many", "ipm", weights(lambda t, d: [add(t, d, f"x{n}", "BF16", [1], b"\0\0") for n in range(9)]), 5, ["not expected x0, x1, x2, x3, x4 and 4 more"]),
    ("B21", "a head of another vocabulary", "ipm", weights(widened), 5, ["lm_head.weight is (273, 32), not (272, 32)"]),
    ("B22", "a layer of another dtype", "ipm", weights(in_float32), 5, ["mixed or unusable dtypes", "got:      BF16, U16"]),
    ("B24", "an index and a single file", "ipm", sharded(both), 5, ["both an index and a single file", "remove one of them"]),
    ("B25", "an index that climbs", "ipm", names("../evil.safetensors"), 5, ["a shard that is not here", "'../evil.safetensors'"]),
    ("B26", "an index with an absolute path", "ipm", names("/etc/evil.safetensors"), 5, ["a shard that is not here"]),
    ("B27", "an index with a path of Windows", "ipm", names("..\\evil.safetensors"), 5, ["a shard that is not here"]),
    ("B27", "an index with a drive", "ipm", names("C:\\x.safetensors"), 5, ["a shard that is not here"]),
    ("B27", "an index with a share", "ipm", names("\\\\host\\x.safetensors"), 5, ["a shard that is not here"]),
    ("B28", "an index that names a pickle", "ipm", names("x.bin"), 5, ["a shard that is not here", "'x.bin'"]),
    ("B28", "an index that goes through a shard", "ipm", names("a.safetensors/../a.safetensors"), 5, ["a shard that is not here"]),
    ("B28+", "an index that names no file", "ipm", names(""), 5, ["a shard that is not here"]),
    ("B28+", "an index that names a folder", "ipm", names("."), 5, ["a shard that is not here"]),
    ("B28+", "an index with a NUL", "ipm", names("a\0.safetensors"), 5, ["a shard that is not here"]),
    ("B29", "an index with a tensor too many", "ipm", sharded(lambda f, m: m.update(x="a.safetensors")), 5, ["do not name the same tensors", "got:      x"]),
    ("B29", "an index with a tensor too few", "ipm", sharded(lambda f, m: m.pop(NORM) and None), 5, ["do not name the same tensors", NORM]),
    ("B29", "an index that names the wrong shard", "ipm", sharded(two_shards_of_one), 5, ["do not name the same tensors"]),
    ("B30", "an index whose shard is missing", "ipm", names("b.safetensors"), 5, ["a shard that is not here", "'b.safetensors'"]),
    ("B31", "an index that is not JSON", "ipm", holding("model.safetensors.index.json", "{"), 5, ["not a usable JSON file", "index.json"]),
    ("B31", "an index without a map", "ipm", sharded(lambda f, m: {"weight_map": []}), 5, ["a shard that is not here", "got:      ''"]),
    ("B31+", "an index of lists", "ipm", sharded(lambda f, m: {"weight_map": {"x": ["a"]}}), 5, ["a shard that is not here"]),
    ("B34", "a folder for weights", "ipm", in_place_of_weights(Path.mkdir), 4, ["no safetensors weights"]),
    ("B34", "a FIFO for weights", "ipm", in_place_of_weights(os.mkfifo), 4, ["no safetensors weights"]),
    ("B35", "a link to itself for weights", "ipm", in_place_of_weights(lambda f: f.symlink_to(f.name)), 4, ["no safetensors weights"]),
    ("B37", "pickled weights alone", "ipm", pickled, 4, ["pytorch_model.bin", "save_pretrained; they are never opened here"]),
    ("B39", "a model of foreign code", "ipm", foreign_code("config.json", AutoModelForCausalLM="evil.Model"), 4, ["cannot be used as it is", "auto_map", "use a built-in family"]),
    ("B39+", "a quantised model", "ipm", edit_json("config.json", quantization_config={"quant_method": "awq"}), 4, ["quantization_config", "unquantised"]),
    ("B39+", "a family of its own", "ipm", edit_json("config.json", model_type="evil"), 5, ["unknown model family", "llama, mistral"]),
    ("B40", "a tokenizer of foreign code", "im", foreign_code("tokenizer_config.json", AutoTokenizer=["evil.T", None]), 4, ["cannot be used as it is", "tokenizer_config.json"]),
    ("B43", "more tokens than embeddings", "im", edit_json("tokenizer.json", model={"type": "BPE", "vocab": {"a": 272}, "merges": []}), 4, ["without an embedding", "ids below 272", "got:      272"]),
    ("B43+", "a tokenizer without a model", "im", edit_json("tokenizer.json", model=None), 4, ["not a usable tokenizer"]),
    ("B43+", "a tokenizer with ids that are text", "im", edit_json("tokenizer.json", model={"vocab": {"a": "1"}}), 4, ["not a usable tokenizer", "not a whole number"]),
    ("B43+", "added tokens without ids", "im", edit_json("tokenizer.json", added_tokens=[{"content": "x"}]), 4, ["not a usable tokenizer"]),
    ("B43+", "no tokenizer", "i", lambda folder: (folder / "tokenizer.json").unlink(), 4, ["no tokenizer", "tokenizer.json or tokenizer.model"]),
    ("B44", "a key twice", "ipm", holding("config.json", '{"model_type": "llama", "model_type": "llama"}'), 5, ["duplicate key 'model_type'"]),
    ("B44", "a NaN in the config", "ipm", holding("config.json", '{"rope_theta": NaN}'), 5, ["NaN is not a number"]),
    ("B44", "a depth as text", "ipm", edit_json("config.json", num_hidden_layers="32"), 5, [CONFIG, *SIZES, "'32'"]),
    ("B44", "a negative depth", "ipm", edit_json("config.json", num_hidden_layers=-1), 5, [CONFIG, *SIZES, "-1"]),
    ("B44", "a depth of a billion", "ipm", edit_json("config.json", num_hidden_layers=10**9), 5, [CONFIG, *SIZES, "1000000000"]),
    ("B44", "a depth of null", "ipm", edit_json("config.json", num_hidden_layers=None), 5, [CONFIG, *SIZES, "None"]),
    ("B44+", "a depth of true", "ipm", edit_json("config.json", num_hidden_layers=True), 5, [CONFIG, *SIZES, "True"]),
    ("B44+", "a billion experts", "ipm", edit_json("config.json", **MIXTRAL, num_local_experts=10**9), 5, [CONFIG, "num_local_experts"]),
    ("B44+", "false as text", "ipm", edit_json("config.json", tie_word_embeddings="false"), 5, [CONFIG, "tie_word_embeddings", "'false'"]),
    ("B44+", "no heads", "ipm", edit_json("config.json", num_attention_heads=0), 5, [CONFIG, "num_attention_heads"]),
    ("B44+", "more heads than width", "ipm", edit_json("config.json", num_attention_heads=64, head_dim=None), 5, [CONFIG, "head_dim", "0"]),
    ("B44+", "a number beyond all floats", "ipm", holding("config.json", '{"rope_theta": 1e400}'), 5, ["1e400 is too large a number"]),
    ("B44+", "half of a surrogate pair", "ipm", edit_json("config.json", x="\ud800"), 5, ["not a usable JSON file", "surrogates"]),
    ("B44+", "a config nested 100,000 deep", "ipm", holding("config.json", '{"a":' * 100_000), 5, ["nested too deeply"]),
    ("B44+", "an empty config", "ipm", holding("config.json", ""), 5, ["not a usable JSON file"]),
    ("B44+", "a config in Latin-1", "ipm", holding("config.json", '{"a": "é"}'.encode("latin-1")), 5, ["not a usable JSON file"]),
    ("B20+", "the config of another family", "ipm", edit_json("config.json", model_type="qwen2"), 5, ["missing model.layers.0.self_attn.k_proj.bias", "and 7 more"]),
    ("+", "two models in one source", "ip", holding("small.gguf", "GGUF"), 4, ["several models in one source", "small.gguf"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("doors", "spoil", "code", "words"), [case[2:] for case in HOSTILE], ids=[f"{n}-{what}" for n, what, *_ in HOSTILE]
)
def test_a_model_that_is_not_what_it_says_is_refused_at_every_door(
    tmp_path: Path, llama: Path, doors: str, spoil: Spoil, code: int, words: list[str]
) -> None:
    root, bad = tmp_path / "results", copy_of(llama, tmp_path / "bad")
    spoil(bad)
    if "i" in doors:
        refused(root, code, words, *fetch_and_init(root, bad, llama))
    if "p" in doors:
        config = pin_of(bad, tmp_path)
        before = Path(config[-1]).read_bytes()
        refused(root, code, words, *config)
        assert Path(config[-1]).read_bytes() == before
    if "m" in doors:
        refused(root, code, words, *merge_of(bad, tmp_path))
        assert not (tmp_path / "out").exists()


def test_b31_an_index_of_gigabytes_is_not_read(tmp_path: Path, llama: Path) -> None:
    bad = copy_of(llama, tmp_path / "bad")
    with (bad / "model.safetensors.index.json").open("wb") as file:
        file.truncate(4 << 30)  # takes no room, and would take 8 GB of memory
    said = refused(tmp_path / "results", 5, ["not a usable JSON file", "4,294,967,296 bytes"], *merge_of(bad, tmp_path))
    assert "index.json" in said


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "sub"])
def test_b33_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, llama: Path, name: str) -> None:
    bad = copy_of(llama, tmp_path / "bad")
    (tmp_path / "elsewhere").write_bytes((llama / "model.safetensors").read_bytes())
    (bad / name).unlink(missing_ok=True)
    (bad / name).symlink_to("../elsewhere")
    root = tmp_path / "results"
    refused(root, 4, ["a link that leaves the folder", name, "elsewhere"], *pin_of(bad, tmp_path))
    if name == "model.safetensors":
        words = ["a link that leaves the model's folder", name, "elsewhere"]
        refused(root, 5, words, *merge_of(bad, tmp_path))


def test_b33_the_links_of_the_hubs_cache_are_followed_to_its_blobs(tmp_path: Path, llama: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(llama.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    code, said = run(*merge_of(snapshot, tmp_path))
    assert code == 0, said
    assert (tmp_path / "out" / "config.json").is_file()


def heavy_metadata(table: dict[str, Any], data: bytearray) -> None:
    table["__metadata__"] = {"format": "pt", "note": "y" * 1_000_000}


def lying_total(total: Any) -> Callable[[Path, dict[str, str]], dict[str, Any]]:
    return lambda folder, weight_map: {"metadata": {"total_size": total}, "weight_map": weight_map}


def hard_linked(folder: Path) -> None:
    os.link(folder / "model.safetensors", folder.parent / "same")


ODD: list[tuple[str, Spoil]] = [
    ("B16-metadata of a megabyte", weights(heavy_metadata)),
    ("B32-an index whose total is a lie", sharded(lying_total(1))),
    ("B32-an index whose total is no number", sharded(lying_total(["\x1b" * 1000]))),
    ("B36-weights with a second name on disk", hard_linked),
    ("B39-code that nothing names", holding("modeling_llama.py", EVIL)),
    ("B40-a tokenizer class that nobody knows", edit_json("tokenizer_config.json", tokenizer_class="EvilTokenizer")),
    ("+-pickles beside the weights", holding("pytorch_model.bin", pickle.dumps(Bomb()))),
]


@pytest.mark.parametrize("spoil", [spoil for _, spoil in ODD], ids=[name for name, _ in ODD])
def test_what_is_odd_and_harmless_makes_the_same_weights(
    tmp_path: Path, llama: Path, spoil: Spoil, caplog: pytest.LogCaptureFixture, request: Any
) -> None:
    root, odd = tmp_path / "results", copy_of(llama, tmp_path / "odd")
    spoil(odd)
    plain, other = (made(root, *fetch_and_init(root, folder, llama)) for folder in (llama, odd))
    entries = [(found.path / "tensors.json").read_bytes() for found in (plain, other)]
    assert entries[0] == entries[1]
    for file in other.path.glob("*.safetensors"):
        assert b"yyyy" not in file.read_bytes()
    index = json.loads((other.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == other.facts["bytes"]
    assert caplog.text.count("bytes of weights") == ("an index whose total" in request.node.name)
    assert "\x1b" not in caplog.text and len(caplog.text) < 1000
