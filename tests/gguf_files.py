"""GGUF files for the tests: put together byte by byte, or holding a small model and its vocabulary."""

import struct
from dataclasses import replace
from pathlib import Path

import torch

from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import BYTE, CONTROL, SPACE, UNKNOWN, USER_DEFINED, Piece, Vocabulary
from gemsmith.weights.gguf_write import save_gguf
from tiny import tiny_config

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10
HEAD_DIM, D_MODEL = 16, 64  # blocks of 32 fill every row of a matrix


def text(words: str | bytes) -> bytes:
    data = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """Return one entry of the metadata; `value` as it stands in the file."""
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, sizes: tuple[int, ...], code: int = 0, offset: int = 0) -> bytes:
    """Return one entry of the table; sizes in the file's order, the longest stride last."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, code, offset)


def gguf(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    data: bytes = b"",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    """Return a file; the counts say something else than the truth where they are given."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def byte_vocabulary(n_pieces: int = 300) -> Tokenizer:
    """Return a vocabulary of special pieces, 256 bytes and a few letters with their merges."""
    pieces = [Piece(word, 0.0, CONTROL) for word in ("<pad>", "<eos>", "<bos>")] + [Piece("<unk>", 0.0, UNKNOWN)]
    marks = ("<mask>", "<start_of_turn>", "<end_of_turn>", "\n", SPACE * 2, "<b>")
    pieces += [Piece(word, 0.0, USER_DEFINED) for word in marks]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = ("ab", "er", "abe", "aber", SPACE + "a", *"abemorslu", SPACE)
    pieces += [Piece(word, -float(place)) for place, word in enumerate(words)]
    pieces += [Piece(f"<unused{n}>", 0.0, USER_DEFINED) for n in range(n_pieces - len(pieces))]
    return Tokenizer(Vocabulary.from_pieces(pieces))


def small_network(family: str = "gemma2", *, seed: int = 0) -> Transformer:
    """Return a small network the format has words for: queries divided by the root of head_dim."""
    config = tiny_config(family)
    layers = tuple(replace(layer, head_dim=HEAD_DIM, attn_scale=HEAD_DIM**-0.5) for layer in config.layers)
    network = Transformer(config.replace(layers=layers, d_model=D_MODEL), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            spread = 0.3 if "norm" in name else 0.2 if "embed" in name else 2.0 * parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, spread, generator=generator)
    return network.eval()


def small_gguf(folder: Path, family: str = "gemma2", kind: str = "f16") -> Path:
    """Write a small model and return its file."""
    path = folder / f"{family}-{kind}.gguf"
    return save_gguf(path, small_network(family), tokenizer=byte_vocabulary(), kind=kind, name="small").path
