"""A model on this machine, written in another form: as a GGUF file, or as a folder of dense weights."""

from collections import Counter
from pathlib import Path

from gemsmith.errors import ConfigError, TokenizerError
from gemsmith.weights.folder import LoadedNetwork, read_schemes, save_folder
from gemsmith.weights.generation import read_generation_config
from gemsmith.weights.gguf_write import Written, save_gguf
from gemsmith.weights.manifest import read_manifest
from gemsmith.weights.opening import open_model
from gemsmith.weights.save import check_place
from gemsmith.weights.tensors import find_tensors

_MARK = "converted"  # in the lineage of folders written here
# What --type may say of a folder -> the dtype of its weights.
FOLDER_TYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}


def to_gguf(place: Path, out: Path, *, kind: str, name: str) -> Written:
    """Write a model as one GGUF file; matrices in few bits keep them where the format has the same.

    Raises:
        TokenizerError: The model has no tokenizer.
        ConfigError: The format has no words for the model, or not that `kind`; or `out` is the model itself.
    """
    _check_other(place, out)
    loaded, tokenizer = open_model(place, keep_bits=True)
    if tokenizer is None:
        raise TokenizerError(
            f"model must have a tokenizer to be written as GGUF; got none in {str(place)!r}. "
            "Put its tokenizer.model there."
        )
    return save_gguf(out, loaded.network, tokenizer=tokenizer, kind=kind, name=name)


def to_folder(place: Path, out: Path, *, kind: str | None) -> Written:
    """Write a model as a folder of dense weights.

    Args:
        kind: A key of FOLDER_TYPES; None takes the model's dtype.

    Raises:
        ConfigError: Another `kind`, or `out` is the model itself or another one.
        MemoryLimitError: The dense network does not fit.
    """
    if kind is not None and kind not in FOLDER_TYPES:
        raise ConfigError(
            f"type must be one of {', '.join(FOLDER_TYPES)} for a folder; got {kind!r}. "
            "Name a file something.gguf, or see gemsmith quantize."
        )
    _check_other(place, out)
    check_place(out)
    if out.is_dir() and any(out.iterdir()) and not _is_converted(out):
        raise ConfigError(
            f"out must be new, empty or a folder written by convert; got {str(out)!r}, which holds another model. "
            "Choose a new name, so that it is not lost."
        )
    loaded, tokenizer = open_model(place, dtype=None if kind is None else FOLDER_TYPES[kind])
    suggestions = read_generation_config(place) if place.is_dir() else {}
    folder = save_folder(
        out,
        loaded.network,
        tokenizer=tokenizer,
        generation={key: value for key, value in suggestions.items() if key != "eos_ids"},
        lineage=_lineage(loaded, place),
    )
    entries = find_tensors(folder).values()
    return Written(folder, sum(entry.n_bytes for entry in entries), Counter(entry.dtype for entry in entries))


def _check_other(place: Path, out: Path) -> None:
    if out.resolve() == place.resolve():
        raise ConfigError(f"out must be another place than the model's; got {str(out)!r} twice. Choose a new name.")


def _is_converted(folder: Path) -> bool:
    """Tell whether a folder is one that to_folder wrote."""
    manifest = read_manifest(folder)
    return manifest is not None and _MARK in manifest.lineage and not read_schemes(folder)


def _lineage(loaded: LoadedNetwork, place: Path) -> dict[str, object]:
    manifest = loaded.report.manifest
    return {**(manifest.lineage if manifest is not None else {}), _MARK: {"model": place.name}}
