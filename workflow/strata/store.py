"""The store: content-addressed objects, published by one rename. Knows bytes and ids, nothing of models.

    results/<kind>/<id>/       the object: files 0444, directory 0555, its manifest.json written last
    results/<kind>/<id>.json   a byte copy of the manifest, 0644: the workflow's target; it may vanish at any time

Invariants: what is visible under an id is complete; an object is never changed, only moved to quarantine; no lock,
mtime or listing decides what is valid.
"""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.disk import disk_errors, file_sha256, sync, write_atomically
from strata.errors import NonDeterministic, StoreError, UsageError
from strata.lease import lease, sweep_lease
from strata.recipe import DETERMINISTIC, KINDS, Recipe, canonical, digest, kind_of
from strata.scratch import scratch_folder, sweep

FORMAT = 1
MANIFEST = "manifest.json"
MARKER = "store.json"
NOT_OURS = "it is another user's: let them run `strata store verify`, then run again"
_GONE = (errno.ENOENT, errno.ESTALE)  # what a network's file system says of a file that was moved away
HASHED_ON_READ = 16 << 20  # bytes; larger files are hashed by a full verification only


@dataclass(frozen=True)
class Built:
    """What a builder says of the files it wrote: those it hashed itself, its content digest, and facts to keep.

    `files` maps a name to {"size", "header_size", "header_sha256"}; the store hashes every file not in it. `digest`
    is the content's identity where bytes alone are not it; by default it is taken over the files.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    digest: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Object:
    """A complete object: where it lies, and its manifest."""

    id: str
    path: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_json(self.manifest["recipe"])

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.manifest["facts"])


def objects(root: Path) -> Iterator[str]:
    """The id of everything in the store, whole or not."""
    for kind in sorted(set(KINDS.values())):
        for path in sorted((root / kind).glob("*-*")):
            if path.is_dir() and not path.is_symlink():
                yield path.name


def target(root: Path, id: str) -> Path:
    """The manifest copy that stands for the object in the workflow."""
    return root / kind_of(id) / f"{id}.json"


def find(root: Path, id: str) -> Object | None:
    """The object with this id, checked cheaply: manifest, recipe, names, sizes, small files and headers.

    Returns None when there is none.

    Raises:
        StoreError: it is damaged, or the store is of another version. It is left in place: `reject` moves it away.
    """
    require_version(root)
    with suppress(StoreError):
        return _look(root, id)
    return _look(root, id)  # once more: it may have been moved away, and made anew, within the first look


def _look(root: Path, id: str) -> Object | None:
    path = root / kind_of(id) / id
    if not path.is_dir():  # first: an object that is published behind a look for its manifest is not damaged
        return None
    try:
        written = (path / MANIFEST).read_bytes()
        manifest = json.loads(written)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        if path.is_dir():
            raise damaged(id, path, "manifest.json", "a file", "missing") from None
        return None
    except ValueError:
        raise damaged(id, path, "manifest.json", "JSON", "something else") from None
    found = Object(id, path, manifest)
    _check(found, HASHED_ON_READ)
    if encode(manifest) != written:
        raise damaged(id, path / MANIFEST, "manifest.json", "the bytes that were written", "others that say the same")
    return found


def require(root: Path, id: str, check: Callable[[Object], None] | None = None) -> Object:
    """The object with this id, for a job that rests on it. `check` looks closer, as `verify` does.

    Raises:
        StoreError: it is missing, or damaged and in quarantine now. The next run builds it again.
    """
    with _rejecting(root, id):
        found = find(root, id)
        if found is None:
            target(root, id).unlink(missing_ok=True)  # or the workflow would go on believing in it
            raise StoreError(
                "not in the store", where=root / kind_of(id) / id, expected="an object", got="nothing",
                todo="run again: it is built then",
            )  # fmt: skip
        if check is not None:
            check(found)
    return found


def verify(found: Object) -> None:
    """Hash every file of an object that has a hash of its own. Raises StoreError naming the first that differs."""
    _check(found, None)


def publish(
    root: Path, recipe: Recipe, build: Callable[[Path], Built], wait: bool = True, stop: Sequence[int] = ()
) -> Object:
    """The object of this recipe: the one in the store, or else what `build` writes into the folder it is given.

    An existing object costs a check and a new manifest copy. A process that finds another at work on it waits for
    what that one makes; one that loses a race all the same drops its own work.

    Raises:
        StoreError: the object in the store is damaged; it is in quarantine now, and the next run rebuilds it.
        NonDeterministic: another process published other content for the same deterministic recipe.
        SpaceError: no space, or no permission.
        ClusterError: another process is at work on it, and this one is not to `wait`.
        Preempted: one of the signals to `stop` came while it waited.
    """
    with disk_errors(root):
        require_version(root)
        if not (root / MARKER).exists():
            write_atomically(root / MARKER, encode({"format": FORMAT}))
        done = _accept(root, recipe)
        if done is None:
            needs = (*recipe.sources, *recipe.parents)
            with lease(root, recipe.id, lambda: _accept(root, recipe), needs, wait, stop) as made:
                done = made or _build(root, recipe, build)
        _copy_manifest(root, done)
        sweep_lease(root, recipe.id)
    return done


def reject(root: Path, id: str, reason: str, only: int | None = None) -> Path | None:
    """Move an object to quarantine with the reason beside it. Nothing is deleted. Returns where it went,
    or None where it was not, or no longer.

    Args:
        only: the inode of the folder that was looked at: another may have taken its place since.

    Raises:
        StoreError: the store is of another version, and so nobody here can tell what is damaged.
    """
    require_version(root)
    path = root / kind_of(id) / id
    if only not in (None, _inode(path)):
        return None
    target(root, id).unlink(missing_ok=True)
    if not path.is_dir():
        return None
    place = root / "quarantine" / f"{id}.{secrets.token_hex(4)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.chmod(0o755)  # a folder that is read-only cannot be moved to another parent
        path.rename(place)
    except FileNotFoundError:  # another process has done it
        return None
    place.chmod(0o555)
    place.with_name(f"{place.name}.txt").write_text(reason + "\n", encoding="utf-8")
    return place


def restore(root: Path, id: str, place: Path) -> None:
    """Bring an object back from quarantine, unless another has been built in its place."""
    path = root / kind_of(id) / id
    if not path.exists():
        place.chmod(0o755)
        place.rename(path)
        _lock(path)
        place.with_name(f"{place.name}.txt").unlink(missing_ok=True)
        _copy_manifest(root, require(root, id))


def _accept(root: Path, recipe: Recipe) -> Object | None:
    """The object that is already there, when it is whole and was made from this very recipe."""
    with _rejecting(root, recipe.id):
        found = find(root, recipe.id)
        if found is not None and canonical(found.manifest["recipe"]) != recipe.canonical:
            raise damaged(recipe.id, found.path, "recipe", recipe.canonical[:200], "another one")
    if found is not None and found.path.stat().st_mode & 0o222:
        with suppress(PermissionError):  # another user's: theirs to do
            _lock(found.path)  # its publisher died between the rename and this
    return found


@contextmanager
def _rejecting(root: Path, id: str) -> Iterator[None]:
    """Move an object that turns out to be damaged to quarantine, and say where it went."""
    before = _inode(root / kind_of(id) / id)
    try:
        yield
    except StoreError as error:
        try:
            place = reject(root, id, str(error), before)
        except PermissionError:
            error.details["do"] = NOT_OURS
            raise error from None
        if place is None:
            raise
        error.details["do"] = f"run again: it is built anew. What is damaged was moved to {place}"
        raise


def _inode(path: Path) -> int:
    """Which folder stands under a name; 0 for none."""
    with suppress(OSError):
        return path.stat().st_ino
    return 0


def _build(root: Path, recipe: Recipe, build: Callable[[Path], Built]) -> Object:
    home = root / recipe.kind
    home.mkdir(parents=True, exist_ok=True)
    sweep(root / "tmp", recipe.id)
    scratch = scratch_folder(root / "tmp", recipe.id)
    try:
        built = build(scratch)
        manifest = _manifest(scratch, recipe, built)
        (scratch / MANIFEST).write_bytes(encode(manifest))
        _seal(scratch)
        return _rename(root, scratch, Object(recipe.id, home / recipe.id, manifest))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _manifest(scratch: Path, recipe: Recipe, built: Built) -> dict[str, Any]:
    files = dict(built.files)
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        name = file.relative_to(scratch).as_posix()
        if name not in files:
            files[name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    manifest = {
        "format": FORMAT,
        "id": recipe.id,
        "recipe": recipe.to_json(),
        "digest": built.digest or digest(canonical(files)),
        "facts": built.facts,
        "files": dict(sorted(files.items())),
    }
    return manifest | {"seal": seal(manifest)}


def seal(manifest: dict[str, Any]) -> str:
    """sha256 over everything else in a manifest, which is what the rest of the object is held against."""
    return digest(canonical({key: value for key, value in manifest.items() if key != "seal"}))


def _seal(folder: Path) -> None:
    """Make every file read-only and durable before the folder gets its name."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            path.chmod(0o444)
        sync(path)
    sync(folder)


def _rename(root: Path, scratch: Path, made: Object) -> Object:
    try:
        scratch.rename(made.path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return _winner(root, made)
        if error.errno != errno.ENOENT or not _is_there(root, made):
            raise
    sync(made.path.parent)
    _lock(made.path)
    return made


def _winner(root: Path, made: Object) -> Object:
    """What another process has published first. Raises NonDeterministic where it must be the same and is not."""
    won = require(root, made.id)
    if made.recipe.operation in DETERMINISTIC and won.digest != made.digest:
        raise NonDeterministic(
            "one recipe gave two contents", where=won.path, expected=f"digest {won.digest}", got=made.digest,
            todo="report it: this operation must not depend on the machine",
        )  # fmt: skip
    return won


def _is_there(root: Path, made: Object) -> bool:
    """Whether a rename that failed was done all the same: a network's file system that lost its server's answer asks
    again, and then there is nothing left to rename (open(2), on NFS)."""
    found = find(root, made.id)
    return found is not None and found.digest == made.digest


def _lock(folder: Path) -> None:
    """Make an object's folders read-only. After the rename, since one that is read-only cannot change its parent."""
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o555)
    folder.chmod(0o555)  # last: whoever finds it so need not look further


def _copy_manifest(root: Path, done: Object) -> None:
    write_atomically(target(root, done.id), encode(done.manifest))


def _check(found: Object, hash_up_to: int | None) -> None:
    id, path, manifest = found.id, found.path, found.manifest
    try:
        if manifest["format"] != FORMAT:
            raise damaged(id, path, "format", FORMAT, manifest["format"])
        if manifest["seal"] != seal(manifest):
            raise damaged(id, path / MANIFEST, "seal", seal(manifest), manifest["seal"])
        if manifest["id"] != id or Recipe.from_json(manifest["recipe"]).id != id:
            raise damaged(id, path, "id", id, manifest["id"])
        files = manifest["files"]
        inside = {item.relative_to(path).as_posix(): item for item in path.rglob("*")}
        folders = {name for name, item in inside.items() if item.is_dir() and not item.is_symlink()}
        present, needed = inside.keys() - folders - {MANIFEST}, {str(p) for name in files for p in Path(name).parents}
        if present != set(files) or folders - needed:
            raise damaged(id, path, "files", len(files), sorted((present ^ set(files)) | (folders - needed))[:5])
        for name, entry in files.items():
            _check_file(found, name, entry, hash_up_to)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise damaged(id, path, MANIFEST, "a manifest", error) from None
    except OSError as error:
        if error.errno not in _GONE:
            raise
        raise damaged(id, path, "files", "those that the manifest names", error) from None


def _check_file(found: Object, name: str, entry: dict[str, Any], hash_up_to: int | None) -> None:
    file = found.path / name
    size = file.stat().st_size
    if size != entry["size"]:
        raise damaged(found.id, file, "size", entry["size"], size)
    if "header_sha256" in entry:
        with file.open("rb") as stream:
            actual = digest(stream.read(entry["header_size"]))
        if actual != entry["header_sha256"]:
            raise damaged(found.id, file, "sha256 of the header", entry["header_sha256"], actual)
    elif hash_up_to is None or size <= hash_up_to:
        actual = file_sha256(file)
        if actual != entry["sha256"]:
            raise damaged(found.id, file, "sha256", entry["sha256"], actual)


def require_version(root: Path) -> None:
    """Raise StoreError for a store of another version: what is in it is for its own Strata to say."""
    marker = root / MARKER
    try:
        version = json.loads(marker.read_bytes())["format"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        version = "unreadable"
    if version != FORMAT:
        what = "a store of another version"
        raise StoreError(what, where=marker, expected=FORMAT, got=version, todo="use its Strata")


def encode(manifest: Any) -> bytes:
    """JSON for people and machines, the same bytes for the same value."""
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def damaged(id: str, where: object, what: str, expected: object, got: object, todo: str = "") -> StoreError:
    """The error for an object that is not what its manifest says."""
    return StoreError(f"{id} is damaged: {what}", where=where, expected=expected, got=got, todo=todo)
