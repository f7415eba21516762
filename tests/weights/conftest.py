"""Folders to load: written by us, written by transformers, and mended by hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemsmith.weights.folder import save_folder
from tiny import tiny_network


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's caches and tokens out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    # On a busy disk a wait for it takes minutes, and no test pulls the plug.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Gemma 2 folder without a manifest, as published ones are."""
    path = save_folder(tmp_path / "model", tiny_network("gemma2"))
    (path / "MANIFEST.json").unlink()
    return path


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Change keys of a folder's config.json; a value of ... removes one."""

    def edit(folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        raw = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))

    return edit


@pytest.fixture
def edit_tensors() -> Callable[..., None]:
    """Rewrite a folder's single file through safetensors with some tensors changed; None removes one."""

    def edit(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()} | changes
        save_file({name: t for name, t in tensors.items() if t is not None}, path, metadata={"format": "pt"})

    return edit
