"""B45-B54: a config that says what nobody means, by `strata ls`, which resolves it as the workflow does."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks import refused, run

from strata import experiment

PIN = f"sha256: {'a' * 64}"
SHAPE = "shape: {family: llama, layers: 4, parameters: 10, bytes: 20, dtype: bfloat16}"
GOOD = f"""\
suites: []
sources:
  m: {{path: model, {PIN}, {SHAPE}}}
  t: {{path: text, {PIN}}}
variants:
  base: {{init: {{source: m}}}}
  dus: {{parent: base, merge: {{method: dus, drop: 1}}}}
  healed: {{parent: dus, pretrain: {{data: {{t: 1.0}}, tokens: 10000, learning_rate: 1.0e-5, seed: 3}}}}
"""
TOKEN = "hf_" + "Qz7" * 10
MERGE = "method: dus, drop: 1"
NAME = "not a valid name"
ALIASES = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))


def named(name: str) -> tuple[str, str]:
    return "  dus:", f"  {name}:"


def stacked(*entries: str) -> tuple[str, str]:
    return MERGE, f"method: slices, slices: [{', '.join(entries)}]"


HOSTILE: list[tuple[str, str, tuple[str, str], list[str]]] = [
    ("B45", "a rate that YAML 1.1 reads as text", ("1.0e-5", "1e-5"), ["`1e-5` means different things", "write 1.0e-5", ":8, variants.healed.pretrain.learning_rate"]),
    ("B46", "a seed of no", ("seed: 3", "seed: no"), ["`no` means different things", "variants.healed.pretrain.seed"]),
    ("B46", "a name of on", named("on"), ["`on` means different things", 'true, false or "on"']),
    ("B46", "a time for a number", ("tokens: 10000", "tokens: 1:30"), ["`1:30` means different things", "pretrain.tokens"]),
    ("B46", "a revision in base 8", (f"path: text, {PIN}", "dataset: a/b, file: c, revision: 0755"), ["`0755` means different things", "sources.t.revision"]),
    ("B46", "a revision that is a number", (f"path: text, {PIN}", "dataset: a/b, file: c, revision: 1234567"), ["sources.t.revision", "a valid string", "1234567"]),
    ("B46+", "a truth for a number", ("drop: 1", "drop: true"), ["variants.dus.merge.drop", "integer", "True"]),
    ("B46+", "infinity", ("1.0e-5", ".inf"), ["`.inf` means different things"]),
    ("B46+", "a number of 5,000 digits", ("drop: 1", f"drop: {'9' * 5000}"), ["a number with too many digits", "variants.dus.merge.drop"]),
    ("B46+", "a number beyond all floats", ("1.0e-5", "1.0e+999"), ["not a finite decimal number"]),
    ("B47", "a misspelt key", ("drop: 1", "drp: 1"), ["unknown key `drp`", "write `drop`"]),
    ("B47", "a misspelt method", ("method: dus", "method: dsu"), ["unknown method", "dus, interlocked", "'dsu'"]),
    ("B47", "a misspelt parent", ("parent: base", "parent: bsae"), ["a parent that does not exist", "base, dus", "bsae"]),
    ("B48", "a variant twice", ("  healed:", "  dus:"), ["duplicate key `dus`", "also on line 7"]),
    ("B48", "a section twice", ("variants:", "suites: [quick]\nvariants:"), ["duplicate key `suites`", "keep one"]),
    ("B49", "Snakemake's templates", ("suites: []", "__use_yte__: true"), ["makes a config run code"]),
    ("B49", "an object of Python", ("suites: []", "suites: !!python/object/apply:os.system [touch pwned]"), ["YAML tags are not allowed"]),
    ("B50", "nothing", (GOOD, ""), ["the file is empty"]),
    ("B50", "nothing but a comment", (GOOD, "# x\n"), ["the file is empty"]),
    ("B50", "a list", (GOOD, "- 1\n"), ["not a mapping at the top", "got:      a list"]),
    ("B50", "a tab", ("  dus:", "\tdus:"), ["not valid YAML"]),
    ("B50+", "brackets 100,000 deep", ("suites: []", "suites: " + "[" * 100_000), ["nested too deeply", "at most 100 levels"]),
    ("B50+", "aliases of aliases of aliases", ("suites: []", ALIASES), ["more values than a config can have"]),
    ("B50+", "an alias inside its own anchor", ("suites: []", "suites: &a [*a]"), ["an alias inside its own anchor"]),
    ("B50+", "a NUL in a path", ("path: model", 'path: "a\\0b"'), ["a character that no name or path can have", "sources.m.path"]),
    ("B50+", "half of a surrogate pair", ("path: model", 'path: "\\ud800"'), [":3"]),
    ("B50+", "an escape of the terminal", ("parent: base", 'parent: "\\e[2J"'), ["a character that no name", "'\\x1b'"]),
    ("B51", "a name that is a command", named('"a;touch pwned"'), [NAME, "'a;touch pwned'"]),
    ("B51", "a name that is substituted", named('"$(id)"'), [NAME]),
    ("B51", "a name of two words", named('"a b"'), [NAME]),
    ("B51", "a name that climbs", named('"../a"'), [NAME]),
    ("B51", "a name that is an option", named("-rf"), [NAME]),
    ("B51", "a name that is here", named('"."'), [NAME]),
    ("B51", "an empty name", named('""'), [NAME]),
    ("B51", "a name of 300 letters", named("a" * 300), [NAME, "1 to 64"]),
    ("B51", "an emoji", named("🦙"), [NAME]),
    ("B51", "a device of Windows", named("CON"), [NAME]),
    ("B51", "a name that differs by case alone", named("Base"), [NAME, "variants.Base"]),
    ("B51+", "a name with a line end", named('"a\\n"'), [NAME]),
    ("B51+", "a name in a full-width letter", named("\uff44us"), [NAME]),
    ("B52", "one name for two variants", ("  healed:", "  base:"), ["duplicate key `base`"]),
    ("B53", "beyond the end", stacked("[0, 5]"), ["slices", "4"]),
    ("B53", "a negative range", stacked("[-1, 2]"), ["slices", "-1"]),
    ("B53", "an empty range", stacked("[2, 2]"), ["slices"]),
    ("B53", "a reversed range", stacked("[3, 1]"), ["slices"]),
    ("B53", "no slices", stacked(), ["slices", "at least 1"]),
    ("B53", "half a layer", stacked("[0, 1.5]"), ["slices", "integer"]),
    ("B53", "a million layers", (MERGE, "method: repeat, blocks: [[0, 4]], times: 250000"), ["times", "10000"]),
    ("B53", "more dropped than there are", ("drop: 1", "drop: 4"), ["`drop` is out of range", "0 to 3: the parent has 4 layers"]),
    ("B53+", "its own parent", ("parent: base", "parent: dus"), ["its own ancestor", "dus <- dus"]),
    ("B53+", "weights of nothing", (f"parent: base, merge: {{{MERGE}}}", "parents: [base, base], merge: {method: linear, weights: [0, 0]}"), ["weights", "not all 0"]),
    ("B55", "a token of the hub", ("path: text", f"path: {TOKEN}"), ["a hub token stands in this file", "bad.yaml:4", "revoke"]),
    ("B55+", "a token as a key", ("path: text", f"path: x, {TOKEN}: 1"), ["a hub token stands in this file"]),
    ("B55+", "a token in a comment of a broken file", (GOOD, f"a: [  # {TOKEN}"), ["a hub token stands in this file"]),
    ("B55+", "a token as a name", named(TOKEN), ["a hub token stands in this file"]),
    ("B61", "a name that a spreadsheet would run", named('"=cmd()"'), [NAME]),
    ("B61", "a name that a browser would run", named('"<script>"'), [NAME]),
    ("B62", "a suite that is not there", ("suites: []", "suites: [../evil.yaml]"), ["no such suite", "../evil.yaml"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"), [case[2:] for case in HOSTILE], ids=[f"{number}-{what}" for number, what, *_ in HOSTILE]
)
def test_a_config_that_nobody_means_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert change[0] in GOOD
    Path("bad.yaml").write_text(GOOD.replace(*change, 1))
    said = refused(tmp_path / "results", 3, ["bad.yaml", *words], "ls", "--configfile", "bad.yaml")
    assert TOKEN not in said
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("revision", ["", ", revision: main", ", revision: v1.0", f", revision: {'A' * 40}"])
def test_b54_a_branch_a_tag_or_nothing_is_no_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(GOOD.replace(f"path: model, {PIN}", f"hub: a/b{revision}"))
    words = ["`m` is not pinned", "bad.yaml:3, sources.m", "a revision of 40 hex digits", "run `strata pin`"]
    refused(tmp_path / "results", 4, words, "ls", "--configfile", "bad.yaml")


@pytest.mark.parametrize(
    ("encoding", "code"), [("utf-8", 0), ("utf-8-sig", 0), ("latin-1", 3), ("utf-16", 3), ("utf-32", 3)]
)
def test_b50_utf_8_is_read_with_or_without_its_mark_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_bytes(("# é\r\n" + GOOD.replace("\n", "\r\n")).encode(encoding))
    got, said = run("ls", "--configfile", "bad.yaml")
    assert got == code, said
    assert code == 0 or ("not UTF-8" in said and "save it as UTF-8" in said)


def test_b52_two_names_of_one_spec_are_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(GOOD + f"  same: {{parent: base, merge: {{{MERGE}}}}}\n")
    variants = experiment.load(["config.yaml"]).variants
    assert variants["dus"].job.id == variants["same"].job.id
    code, said = run("ls")
    assert code == 0 and said.count("missing") == 4, said


def test_b53_repeated_and_overlapping_ranges_and_one_layer_are_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for entries, layers in (("[0, 3], [1, 4]", 6), ("[2, 3], [2, 3]", 2), ("[0, 1]", 1)):
        Path("config.yaml").write_text(GOOD.replace(*stacked(entries)))
        code, said = run("plan", "dus")
        assert code == 0 and f"{layers} layer" in said, said
