"""JSON files as objects, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from gemsmith.errors import CheckpointError

_MAX_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """Return the object a JSON file holds.

    Raises:
        CheckpointError: The file cannot be read, is no JSON object, or says one thing twice.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        return parse_object(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path.name} must be readable; got {error.strerror} for {str(path)!r}. Check the folder."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path.name} must be a JSON object; got {error} in {str(path)!r}. Was the download interrupted?"
        ) from error


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the object a JSON text holds.

    Raises:
        ValueError: It is no JSON object, is nested too deep, or says one thing twice.
    """
    try:
        raw = json.loads(data, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("values nested too deep") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r:.60}")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found
