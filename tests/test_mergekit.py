"""mergekit's YAML as a layer plan: its rules for parameters, what is refused, and the folder that `strata merge` writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import strata, tree_sha256, write_experiment
from models import save_model
from strata import mergekit
from strata.errors import ConfigError
from strata.foreign import open_model
from strata.plan import OUTSIDE, Layer, Plan, copy


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in ((7, "a"), (8, "b")):
        save_model(folder / name, seed=seed)
    save_model(folder / "wide", hidden_size=64)
    save_model(folder / "words", vocab_size=280)
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models a and b in it, to work in."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(text: str) -> Plan:
    Path("merge.yaml").write_text(text)
    request = mergekit.read_request(Path("merge.yaml"))
    return mergekit.plan_of(request, {name: open_model(Path(name) / "config.json") for name in request.file.names})


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


DUS = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
merge_method: passthrough
dtype: bfloat16
"""


def test_slices_are_copied_with_the_embedding_of_the_first_and_the_head_of_the_last(here: Path) -> None:
    assert planned(DUS) == Plan(
        tuple(copy(*source) for source in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]),
        copy(0, OUTSIDE), copy(1, OUTSIDE), copy(1, OUTSIDE),
    )  # fmt: skip


def test_whole_models_and_weights_that_add_up_to_one(here: Path) -> None:
    text = """
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 3}}
merge_method: linear
"""
    made = planned(text)
    assert made.layers[2] == Layer(((0, 2), (1, 2)), "linear", (0.25, 0.75))
    assert made.head_from == Layer(((0, OUTSIDE), (1, OUTSIDE)), "linear", (0.25, 0.75))
    assert planned(text + "parameters: {normalize: false}\n").layers[0].weights == (1.0, 3.0)


def test_slerp_starts_at_the_base_model_and_t_may_be_a_gradient_by_filter(here: Path) -> None:
    made = planned("""
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
merge_method: slerp
base_model: b
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - {filter: mlp, value: [1, 0.5, 0]}
    - value: 0.25
""")
    assert made.layers[0].sources == ((0, 0), (1, 0))  # parents are numbered base model first
    for layer, attention, mlp in ((0, 0, 1), (1, 1 / 3, 2 / 3), (2, 2 / 3, 1 / 3), (3, 1, 0)):
        shares = {
            name: made.layers[layer].weights_of(name)[1] for name in ("self_attn.q_proj.weight", "mlp.up_proj.weight")
        }
        assert shares == pytest.approx({"self_attn.q_proj.weight": attention, "mlp.up_proj.weight": mlp})
        assert made.layers[layer].weights_of("input_layernorm.weight") == (0.75, 0.25)
    assert made.embed_from.weights == (0.75, 0.25)


def test_the_nearest_parameter_counts(here: Path) -> None:
    made = planned("""
slices:
  - sources: [{model: a, layer_range: [0, 1], parameters: {scale: 0.5}}]
    parameters: {scale: 0.25}
  - sources: [{model: a, layer_range: [1, 2]}]
    parameters: {scale: 0.25}
  - sources: [{model: a, layer_range: [2, 4]}]
merge_method: passthrough
parameters: {scale: 2}
""")
    assert [layer.weights for layer in made.layers] == [(0.5,), (0.25,), (2.0,), (2.0,)]
    assert (made.embed_from.weights, made.norm_from.weights) == ((0.5,), (2.0,))


def test_llama_pros_yaml_scales_the_writers_of_a_slice_to_zero(here: Path) -> None:
    made = planned("""
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources:
      - model: a
        layer_range: [3, 4]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: 0.0}
            - value: 1.0
  - sources: [{model: a, layer_range: [3, 4]}]
merge_method: passthrough
""")
    assert made.layers[3] == copy(0, 3)
    assert made.layers[4].weights_of("self_attn.o_proj.weight") == (0.0,)
    assert made.layers[4].weights_of("mlp.up_proj.weight") == (1.0,)


def test_two_layers_of_one_model_are_both_used(here: Path) -> None:
    made = planned("""
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: a, layer_range: [1, 2]}, {model: a, layer_range: [2, 3]}]
merge_method: linear
parameters: {weight: 1}
""")
    assert made.layers[2] == Layer(((0, 1), (0, 2)), "linear", (0.5, 0.5))


def test_config_and_tokenizer_are_the_base_models(here: Path, models: Path) -> None:
    (here / "b").unlink()
    shutil.copytree(models / "b", here / "b")
    config = json.loads((here / "b/config.json").read_text())
    (here / "b/config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    text = "models:\n- {model: a}\n- {model: b}\nmerge_method: linear\nparameters: {weight: 1}\n"
    for base, expected in (("", 257), ("base_model: b\n", 5)):
        Path("merge.yaml").write_text(text + base)
        assert strata(here, "merge", "merge.yaml", f"out{expected}").returncode == 0
        assert json.loads((here / f"out{expected}/config.json").read_text())["eos_token_id"] == expected


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_tied_models_are_averaged_without_a_head(here: Path, method: str) -> None:
    for seed in (1, 2):
        save_model(here / f"tied-{seed}", seed=seed, tie_word_embeddings=True)
    Path("merge.yaml").write_text(
        f"models:\n- {{model: tied-1}}\n- {{model: tied-2}}\nmerge_method: {method}\nbase_model: tied-1\n"
        "parameters: {weight: 1, t: 0.5}\n"
    )
    run = strata(here, "merge", "merge.yaml", "out")
    assert run.returncode == 0, run.stderr
    assert "lm_head.weight" not in load(here / "out")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dtype: bfloat16", "parameters: {scale: []}", ["parameters.scale", "at least 1 item"]),
        ("dtype: bfloat16", "parameters: {scale: [1, {value: 2}]}", ["parameters.scale", "not both in one"]),
        ("dtype: bfloat16", "parameters: {scale: [1, one]}", ["parameters.scale[1]", "number", "'one'"]),
        ("dtype: bfloat16", "parameters: {scale: {filter: x}}", ["missing key `value`", "parameters.scale"]),
        ("[1, 4]", "[1, 5]", ["merge.yaml:4, slices[1].sources[0].layer_range", "stop <= 4: b has 4 layers", "[1, 5]"]),
        ("[1, 4]", "[2, 2]", ["slices[1].sources[0].layer_range", "empty or out of range"]),
        ("[1, 4]", "[-1, 2]", ["slices[1].sources[0].layer_range", "empty or out of range"]),
        ("[1, 4]", "[1, 2.5]", ["slices[1].sources[0].layer_range[1]", "integer"]),
        ("[1, 4]", "[1]", ["slices[1].sources[0].layer_range", "at least 2 items"]),
        ("merge_method: passthrough", "merge_method: ties", ["merge_method", "'passthrough', 'linear' or 'slerp'"]),
        ("dtype: bfloat16", "dtype: int8", ["dtype", "'float32'"]),
        ("dtype: bfloat16", "tokenizer_source: banana", ["no such tokenizer", "base, union, a, b", "banana"]),
        ("dtype: bfloat16", "modules: {}", ["unknown key `modules`"]),
        ("dtype: bfloat16", "models: [{model: a}]", ["either `slices` or `models`"]),
        ("merge_method: passthrough", "merge_method: linear", ["missing parameter `weight`", "slices[0]"]),
        ("merge_method: passthrough", "merge_method: slerp", ["`slerp` takes another number of sources", "slices[0]"]),
        (
            "[{model: b, layer_range: [1, 4]}]", "[{model: b, layer_range: [1, 4]}, {model: a, layer_range: [1, 3]}]",
            ["slices[1]", "differ in length", "[3, 2]"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(here: Path, old: str, new: str, expected: list[str]) -> None:
    assert old in DUS
    with pytest.raises(ConfigError) as caught:
        planned(DUS.replace(old, new))
    for text in expected:
        assert text in str(caught.value)


def test_a_file_is_built_into_a_folder_that_transformers_loads(here: Path) -> None:
    Path("merge.yaml").write_text(DUS)
    told = strata(here, "merge", "merge.yaml")
    assert told.returncode == 0 and "3-5  1-3 of b" in told.stdout and "written" not in told.stdout
    run = strata(here, "merge", "merge.yaml", "out/deep")
    assert run.returncode == 0, run.stderr
    ours, a, b = (load(here / name) for name in ("out/deep", "a", "b"))
    for name, tensor in ours.items():
        found = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        layer = int(found[1]) if found else 0
        source = (a if layer < 3 else b) if found else (a if "embed" in name else b)
        other = f"model.layers.{layer if layer < 3 else layer - 2}.{found[2]}" if found else name
        assert torch.equal(tensor, source[other]), name
    model = AutoModelForCausalLM.from_pretrained(here / "out/deep")
    assert len(model.model.layers) == 6
    assert [path.name for path in (here / "out").iterdir()] == ["deep"]  # nothing half-written is left
    assert (here / "out/deep/tokenizer.json").read_bytes() == (here / "a/tokenizer.json").read_bytes()
    assert json.loads((here / "out/deep/strata.json").read_text())["models"] == ["a", "b"]
    # A link to a file that its owner may change would be no copy.
    assert all(file.stat().st_nlink == 1 for file in (here / "out/deep").iterdir())


def test_an_output_that_is_there_is_never_touched(here: Path) -> None:
    Path("merge.yaml").write_text(DUS)
    Path("out").mkdir()
    run = strata(here, "merge", "merge.yaml", "out")
    assert run.returncode == 2 and "there already" in run.stderr
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [("wide", "hidden_size 64"), ("words", "vocab_size 280"), ("nowhere", "no such model")],
)
def test_models_that_do_not_fit_are_refused_before_a_byte_is_written(here: Path, model: str, message: str) -> None:
    Path("merge.yaml").write_text(DUS.replace("model: b", f"model: {model}"))
    run = strata(here, "merge", "merge.yaml", "out")
    assert run.returncode in (4, 5), run.stderr
    assert message in run.stderr and "Traceback" not in run.stderr
    assert not Path("out").exists() and not list(here.glob(".out*"))


def test_a_failure_leaves_nothing_behind(here: Path, models: Path) -> None:
    shutil.copytree(models / "a", here / "large")
    model = AutoModelForCausalLM.from_pretrained(here / "large", dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(here / "large")
    Path("merge.yaml").write_text(
        DUS.replace("model: a", "model: large").replace("model: b", "model: large").replace("bfloat16", "float16")
    )
    run = strata(here, "merge", "merge.yaml", "out")
    assert run.returncode == 5 and "mlp.up_proj" in run.stderr and "not finite" in run.stderr
    assert not Path("out").exists() and not list(here.glob(".out*"))


def test_a_name_of_the_configs_sources_is_fetched(tmp_path: Path, models: Path) -> None:
    folder = write_experiment(tmp_path / "work", models / "a")
    (folder / "merge.yaml").write_text(DUS.replace("model: a", "model: m").replace("model: b", "model: m"))
    run = strata(folder, "merge", "merge.yaml", "out")
    assert run.returncode == 0, run.stderr
    assert len(list((folder / "results/sources").glob("fetch-*.json"))) == 1
    assert tree_sha256(models / "a") in (folder / "config.yaml").read_text()
    assert (folder / "out/config.json").is_file()


def test_one_tokenizer_is_the_union_of_itself(here: Path, models: Path) -> None:
    Path("merge.yaml").write_text(DUS + "tokenizer_source: union\n")
    assert strata(here, "merge", "merge.yaml", "out").returncode == 0
    (here / "b").unlink()
    shutil.copytree(models / "b", here / "b")
    file = here / "b/tokenizer.json"
    file.write_text(file.read_text().replace('"ignore_merges"', '"ignore_merges" '))
    run = strata(here, "merge", "merge.yaml", "out2")
    assert run.returncode == 4 and "tokenizers differ" in run.stderr
