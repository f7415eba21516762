"""Manifests: lengths at each load, hashes once per file, all of them when asked."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemsmith.errors import CheckpointError
from gemsmith.weights import manifest
from gemsmith.weights.folder import load_network, save_folder
from gemsmith.weights.manifest import check_manifest, user_cache_dir, verify_hashes
from tiny import tiny_network

WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "m", tiny_network("gemma2"))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / "MANIFEST.json").read_text())
    change(raw)
    (folder / "MANIFEST.json").write_text(json.dumps(raw))


def test_a_folder_without_manifest_loads(folder: Path) -> None:
    assert load_network(folder).report.manifest is None
    assert verify_hashes(folder) == {}


def test_a_flipped_bit_is_found_at_the_next_load(saved: Path) -> None:
    load_network(saved)
    flip_last_byte(saved / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} must have the SHA-256 [0-9a-f]{{64}} of its manifest; got"):
        load_network(saved)


def test_a_file_is_hashed_once_however_often_it_is_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    plain = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: hashed.append(path.name) or plain(path))
    load_network(saved)
    assert hashed == []  # saving has noted what it wrote
    (user_cache_dir() / "hashes.json").unlink()
    load_network(saved)
    assert sorted(hashed) == ["config.json", "generation_config.json", WEIGHTS]
    load_network(saved)
    assert len(hashed) == 3
    os.utime(saved / WEIGHTS, (1, 1))
    load_network(saved)
    assert hashed[3:] == [WEIGHTS]


def test_full_verification_does_not_trust_what_was_remembered(saved: Path) -> None:
    found = (saved / WEIGHTS).stat()
    flip_last_byte(saved / WEIGHTS)
    os.utime(saved / WEIGHTS, ns=(found.st_atime_ns, found.st_mtime_ns))
    check_manifest(saved)  # same length, time and inode: this is what the quick check cannot see
    with pytest.raises(CheckpointError, match=WEIGHTS):
        verify_hashes(saved)


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_only(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for text in ("{", "[]"):
        (user_cache_dir() / "hashes.json").write_text(text)
        load_network(saved)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load_network(saved)


def test_links_of_the_hugging_face_cache_are_checked_by_their_blobs_name(saved: Path, tmp_path: Path) -> None:
    sha256 = manifest.sha256_of(saved / WEIGHTS)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (tmp_path / sha256).write_bytes((saved / WEIGHTS).read_bytes())
    (snapshot / WEIGHTS).symlink_to(tmp_path / sha256)
    assert verify_hashes(snapshot) == {WEIGHTS: sha256}
    flip_last_byte(tmp_path / sha256)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} must have the SHA-256 {sha256}"):
        verify_hashes(snapshot)


WRONG = [
    (lambda raw: raw.update(format=9), "format must be 1; got 9"),
    (lambda raw: raw.pop("files"), "must list files .*; got KeyError\\('files'\\)"),
    (lambda raw: raw["files"].update(x=3), "must list files"),
    (lambda raw: raw["files"].update({"lost.txt": {"bytes": 1, "sha256": "0"}}), "got no 'lost.txt'"),
    (lambda raw: raw["files"].update({"../x": {"bytes": 1, "sha256": "0"}}), "of its own folder; got '../x'"),
    (lambda raw: raw["files"][WEIGHTS].update(bytes=7), f"{WEIGHTS} must hold the 7 bytes of its manifest; got \\d+"),
    (lambda raw: raw["files"][WEIGHTS].update(sha256="00"), f"{WEIGHTS} must have the SHA-256 00"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_wrong_manifest_is_named(change: Callable[[dict[str, Any]], None], message: str, saved: Path) -> None:
    edit_manifest(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_network(saved)
