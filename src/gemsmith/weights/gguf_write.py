"""A network and its tokenizer -> a GGUF file that llama.cpp and its kin read, whole or not at all."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gemsmith.config import ModelConfig
from gemsmith.errors import ConfigError, StorageError
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.gguf_blocks import BY_NAME
from gemsmith.weights.gguf_config import check_expressible, parse_metadata, render_metadata
from gemsmith.weights.gguf_header import ALIGNMENT, ARRAY, BOOL, MAGIC, NUMBERS, STRING, GgufFile
from gemsmith.weights.gguf_metadata import Metadata
from gemsmith.weights.gguf_tensors import Source, sources
from gemsmith.weights.gguf_tokenizer import render_tokenizer, special_ids
from gemsmith.weights.tokenizer_config import chat_template
from gemsmith.weights.whole_file import replacing_file

# What --type may say -> (format of matrices, the number general.file_type gives it).
TYPES = {"f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q4_0": ("Q4_0", 2)}
_VERSION, _QUANTIZATION_VERSION = 3, 2
_UINT32, _FLOAT32 = 4, 6


@dataclass(frozen=True)
class Written:
    """What a file holds.

    Attributes:
        n_bytes: Its length.
        formats: Number of tensors by format.
    """

    path: Path
    n_bytes: int
    formats: Mapping[str, int]


def save_gguf(path: Path | str, network: Transformer, *, tokenizer: Tokenizer, kind: str, name: str) -> Written:
    """Write one file; an older GGUF file of that name is replaced only when the new one is whole.

    Norms are kept in float32. A matrix whose rows blocks of 32 do not divide is kept in float16. Of a matrix
    in 8 or 4 bits with a scale for each 32 inputs, q8_0 or q4_0 keeps the values; any other is rounded anew.

    Args:
        kind: "f16", "bf16", "q8_0" or "q4_0": the format of the matrices.
        name: What to call the model in the file.

    Raises:
        ConfigError: Another `kind`, or a model readers of the format would take for another one.
        CheckpointError: The network has other parameters than its configuration, such as an adapter.
        StorageError: The disk is full or not writable, or the place holds something else.
    """
    path = Path(path).expanduser().resolve()
    if kind not in TYPES:
        raise ConfigError(f"type must be one of {', '.join(TYPES)}; got {kind!r}. Choose one of them.")
    tokenizer.check_against(network.config)
    metadata = _metadata(network.config, tokenizer, kind=kind, name=name)
    tensors = sources(network, BY_NAME[TYPES[kind][0]])
    n_bytes = sum(tensor.n_bytes for tensor in tensors.values())
    if path.suffix != ".gguf":
        raise StorageError(f"file must be called something.gguf; got {str(path)!r}. Add .gguf to its name.")
    if not path.parent.is_dir():
        raise StorageError(f"folder of the file must exist; got {str(path.parent)!r}. Make it first.")
    with replacing_file(path, is_ours=_begins_as_gguf, n_bytes=n_bytes) as partial, partial.open("xb") as file:
        _write(file, metadata, tensors)
    names = [tensor.block.name for tensor in tensors.values()]
    return Written(path, path.stat().st_size, {name: names.count(name) for name in dict.fromkeys(names)})


def _metadata(config: ModelConfig, tokenizer: Tokenizer, *, kind: str, name: str) -> dict[str, Any]:
    """Return every key of the file, once they read back as the model they were made from."""
    general = {
        "general.architecture": config.family,
        "general.type": "model",
        "general.name": name,
        "general.alignment": ALIGNMENT,
        "general.file_type": TYPES[kind][1],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    raw = {f"{config.family}.{key}": value for key, value in render_metadata(config).items()}
    words = render_tokenizer(tokenizer, n_rows=config.vocab_size, eos_ids=config.eos_ids)
    template = chat_template(tokenizer)
    if template is not None:
        words["tokenizer.chat_template"] = template
    everything = {**general, **raw, **words}
    reread = Metadata(GgufFile(Path("the file to be written"), everything, {}))
    check_expressible(config, parse_metadata(reread, n_rows=config.vocab_size, special=special_ids(reread)))
    return everything


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _write(file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, Source]) -> None:
    """Write the head, then the tensors piece by piece; beside the network only one piece is in memory."""
    file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key.encode()) + _value(value))
    offset = 0
    for name, tensor in tensors.items():
        sizes, code = tuple(reversed(tensor.shape)), tensor.block.code
        file.write(_text(name.encode()) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, code, offset))
        offset += _padded(tensor.n_bytes)
    for tensor in tensors.values():
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for piece in tensor.pieces():
            file.write(piece.numpy().data)
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Return a value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value.encode())
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    letter = next(kind for kind, letter in NUMBERS.items() if np.dtype("<" + letter) == value.dtype)
    return struct.pack("<IIQ", ARRAY, letter, len(value)) + value.tobytes()
