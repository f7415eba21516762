"""MANIFEST.json: the length and SHA-256 of every file of a saved folder.

Lengths are compared at each load. Hashes are computed once per file and remembered by (device,
inode, size, time of change); `verify_hashes` computes them all anew.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemsmith.errors import CheckpointError
from gemsmith.weights.json_file import read_json

MANIFEST_FILE = "MANIFEST.json"
_FORMAT = 1
_MAX_REMEMBERED = 4096
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says about one file."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, and where the model comes from.

    Attributes:
        lineage: Free record of the model's origin: data, recipe, parents.
    """

    files: Mapping[str, FileRecord]
    lineage: Mapping[str, Any] = field(default_factory=dict)

    def render(self) -> str:
        """Return the text of MANIFEST.json."""
        files = {name: {"bytes": r.n_bytes, "sha256": r.sha256} for name, r in sorted(self.files.items())}
        whole = {"format": _FORMAT, "writer": f"gemsmith {version('gemsmith')}", "files": files}
        return json.dumps({**whole, "lineage": dict(self.lineage)}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest, or None where it has none (published folders have none).

    Raises:
        CheckpointError: It is there but is no manifest.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    raw = read_json(path)
    try:
        if raw["format"] != _FORMAT:
            raise CheckpointError(
                f"format must be {_FORMAT}; got {raw['format']!r} in {str(path)!r}. Read it with a newer gemsmith."
            )
        files = {name: FileRecord(int(r["bytes"]), str(r["sha256"])) for name, r in raw["files"].items()}
        return Manifest(files, dict(raw.get("lineage", {})))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{MANIFEST_FILE} must list files with bytes and sha256; got {error!r} in {str(path)!r}. "
            "Save the folder again."
        ) from error


def check_manifest(folder: Path) -> Manifest | None:
    """Check a folder against its manifest: every length, and each hash this machine has not seen yet.

    Raises:
        CheckpointError: A listed file is missing, has another length or other contents.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        _check(folder, manifest, hash_of=remembered_sha256)
    return manifest


def verify_hashes(folder: Path) -> dict[str, str]:
    """Hash every file of a folder anew and compare; return {file: SHA-256} of what was compared.

    A folder with a manifest is compared with it. In a folder of the Hugging Face cache, large files
    are links to blobs named by their SHA-256, and are compared with that. Any other folder has
    nothing to compare with, and gives {}.

    Raises:
        CheckpointError: A file is missing or its contents have changed; it is named.
    """
    folder = Path(folder)
    manifest = read_manifest(folder) or Manifest(_blob_records(folder))
    _check(folder, manifest, hash_of=sha256_of)
    return {name: record.sha256 for name, record in manifest.files.items()}


def _blob_records(folder: Path) -> dict[str, FileRecord]:
    blobs = {path.name: path.resolve() for path in sorted(folder.iterdir()) if path.is_symlink() and path.is_file()}
    return {name: FileRecord(b.stat().st_size, b.name) for name, b in blobs.items() if _SHA256.fullmatch(b.name)}


def _check(folder: Path, manifest: Manifest, *, hash_of: Callable[[Path], str]) -> None:
    for name, record in manifest.files.items():
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(
                f"{MANIFEST_FILE} must name files of its own folder; got {name!r} in {str(folder)!r}. Do not trust it."
            )
        if not path.is_file():
            raise CheckpointError(
                f"folder must hold every file of its manifest; got no {name!r} in {str(folder)!r}. "
                "Was the copy interrupted? Copy or save it again."
            )
        if path.stat().st_size != record.n_bytes:
            raise CheckpointError(
                f"{name} must hold the {record.n_bytes} bytes of its manifest; got {path.stat().st_size} in "
                f"{str(folder)!r}. Was the copy interrupted? Copy or save it again."
            )
    for name, record in manifest.files.items():
        found = hash_of(folder / name)
        if found != record.sha256:
            raise CheckpointError(
                f"{name} must have the SHA-256 {record.sha256} of its manifest; got {found} in {str(folder)!r}. "
                "Its contents have changed: fetch or save it again."
            )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed only if the file is new here or has changed."""
    key = _identity(path)
    known = _read_memory()
    if key not in known:
        known[key] = sha256_of(path)
        remember_sha256({path: known[key]})
    return known[key]


def remember_sha256(hashes: Mapping[Path, str]) -> None:
    """Note the hashes of files for later loads; where the note cannot be written they are computed again."""
    known = _read_memory() | {_identity(path): sha256 for path, sha256 in hashes.items()}
    path = _memory_path()
    # A home that is read-only or full costs time, not the load.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
            json.dump(dict(list(known.items())[-_MAX_REMEMBERED:]), file)
        os.replace(file.name, path)


def _read_memory() -> dict[str, str]:
    try:
        known = json.loads(_memory_path().read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _identity(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _memory_path() -> Path:
    return user_cache_dir() / "hashes.json"


def user_cache_dir() -> Path:
    """Return gemsmith's folder below the user's cache directory; nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemsmith"
