"""generation_config.json: the ids that end a text, and the sampling its publisher suggests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemsmith.errors import CheckpointError
from gemsmith.weights.json_file import read_json

GENERATION_FILE = "generation_config.json"
_SUGGESTIONS: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: _is_number(value) and value >= 0,
    "top_k": lambda value: type(value) is int and value >= 0,
    "top_p": lambda value: _is_number(value) and 0 < value <= 1,
    "min_p": lambda value: _is_number(value) and 0 <= value <= 1,
    "repetition_penalty": lambda value: _is_number(value) and value > 0,
}


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return what a folder suggests for generation; only what its file says.

    Keys: "eos_ids" (tuple of ids), "temperature" (0.0 where the file says not to sample), "top_k"
    (0 for no limit), "top_p", "min_p", "repetition_penalty".

    Raises:
        CheckpointError: The file is no JSON object, or a value is out of range.
    """
    path = Path(folder) / GENERATION_FILE
    if not path.exists():
        return {}
    raw = read_json(path)
    found: dict[str, Any] = {}
    eos = raw.get("eos_token_id")
    if eos is not None:
        ids = eos if isinstance(eos, list) else [eos]
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise _wrong("eos_token_id", eos, path)
        found["eos_ids"] = tuple(ids)
    for key, is_sound in _SUGGESTIONS.items():
        value = raw.get(key)
        if value is None:
            continue
        if not is_sound(value):
            raise _wrong(key, value, path)
        found[key] = value
    if raw.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def render_generation_config(eos_ids: tuple[int, ...], bos_id: int, pad_id: int, **suggestions: Any) -> dict[str, Any]:
    """Return the file's contents: special ids, and the sampling suggested, under its own names."""
    ids = {"bos_token_id": bos_id, "eos_token_id": list(eos_ids), "pad_token_id": pad_id}
    return {**ids, "do_sample": suggestions.get("temperature") != 0.0, **suggestions}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(key: str, value: Any, path: Path) -> CheckpointError:
    return CheckpointError(f"{key} must be in its range; got {value!r} in {str(path)!r}. Correct the file.")
