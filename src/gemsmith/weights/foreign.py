"""Files that are no model folder, named for what they are. Only their first bytes are read."""

from pathlib import Path

from gemsmith.errors import CheckpointError

_GGUF = "a GGUF file"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_KINDS = {".gguf": _GGUF, ".h5": "a Keras weights file", ".keras": "a Keras model", ".onnx": "an ONNX model"}
_KINDS |= dict.fromkeys(_PICKLES, "a pickle")
_MAGIC = {b"GGUF": _GGUF, b"\x89HDF": "a Keras weights file", b"PK\x03\x04": "a pickle in a zip archive"}
_ADVICE = {
    _GGUF: "Name the file itself, or take the safetensors folder of the same model.",
    "a pickle": "A pickle can run code, so none is ever opened: take the safetensors folder of the same model.",
}
_ADVICE["a pickle in a zip archive"] = _ADVICE["a pickle"]
_PLAIN = "Take the folder with config.json and model.safetensors of the same model."


def file_kind(path: Path) -> str | None:
    """Return what kind of foreign weights a file holds, in words, or None."""
    if path.suffix.lower() in _KINDS:
        return _KINDS[path.suffix.lower()]
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return None
    # Pickles of protocol 2 to 5 start with PROTO and their number.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    return _MAGIC.get(head)


def is_gguf(path: Path) -> bool:
    """Tell whether a path names a GGUF file, by its name or its first bytes."""
    return path.is_file() and file_kind(path) == _GGUF


def not_a_folder(path: Path) -> CheckpointError:
    """Return the error for a file where a model folder was asked for."""
    kind = file_kind(path)
    if path.suffix == ".safetensors":
        return CheckpointError(f"model must be a folder; got the file {str(path)!r}. Name its folder instead.")
    advice = _ADVICE.get(kind or "", _PLAIN)
    return CheckpointError(f"model must be a folder; got {str(path)!r}, which is {kind or 'a file'}. {advice}")


def no_weights(folder: Path) -> CheckpointError:
    """Return the error for a folder without a model.safetensors, saying what it holds instead."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = [path.name for path in files]
    partial = next((name for name in names if name.endswith((".incomplete", ".part", ".tmp", ".crdownload"))), None)
    start = f"folder must hold model.safetensors; got {str(folder)!r}"
    if partial is not None:
        return CheckpointError(
            f"{start} with the half-written {partial!r}. The download was interrupted: run gemsmith pull again."
        )
    if "adapter_config.json" in names:
        return CheckpointError(f"{start}, which holds an adapter only. Load the model the adapter was trained on.")
    shard = next((name for name in names if name.endswith(".safetensors")), None)
    if shard is not None:
        return CheckpointError(
            f"{start} or an index, with {shard!r} alone. Fetch model.safetensors.index.json, or rename a single file."
        )
    for path in files:
        kind = file_kind(path)
        if kind is not None:
            advice = _ADVICE.get(kind, _PLAIN)
            return CheckpointError(f"{start}, which holds {path.name!r}, {kind}. {advice}")
    held = ", ".join(names[:5]) or "nothing"
    return CheckpointError(f"{start}, which holds {held}. Name the folder of a model, or gemsmith pull one.")
