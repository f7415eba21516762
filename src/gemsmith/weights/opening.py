"""A model on this machine, folder or GGUF file, opened the same way."""

from collections.abc import Collection
from pathlib import Path

import torch

from gemsmith.config import ModelConfig
from gemsmith.model.quantized import make_dense
from gemsmith.tokenizer import JSON_FILE, MODEL_FILE, Tokenizer
from gemsmith.weights import folder
from gemsmith.weights.folder import LoadedNetwork, load_network, read_config
from gemsmith.weights.foreign import is_gguf
from gemsmith.weights.gguf_load import GgufModel
from gemsmith.weights.memory import check_fits


def open_config(place: Path, *, allow_config_keys: Collection[str] = ()) -> ModelConfig:
    """Return what a model is made of."""
    if is_gguf(place):
        return GgufModel(place, allow_config_keys=allow_config_keys).config
    return read_config(place, allow_config_keys=allow_config_keys)


def count_few_bits(place: Path) -> tuple[int, int]:
    """Return how many weights of a model stay in few bits when it is loaded on a CPU, and their bytes."""
    if is_gguf(place):
        return GgufModel(place).few_bits
    return folder.count_few_bits(place)


def open_model(
    place: Path,
    *,
    dtype: torch.dtype | str | None = None,
    allow_config_keys: Collection[str] = (),
    keep_bits: bool = False,
) -> tuple[LoadedNetwork, Tokenizer | None]:
    """Return a dense network on the CPU and its tokenizer, None for a folder without one.

    Args:
        keep_bits: Leave matrices that are stored in few bits as they are.

    Raises:
        MemoryLimitError: The dense network does not fit.
    """
    if is_gguf(place):
        model = GgufModel(place, allow_config_keys=allow_config_keys)
        return model.network(dtype=dtype, is_native=keep_bits), model.tokenizer()
    loaded = load_network(place, dtype=dtype, allow_config_keys=allow_config_keys)
    if loaded.report.schemes and not keep_bits:
        check_fits(loaded.config, loaded.report.dtype, name=f"model {str(place)!r}, made dense,")
        make_dense(loaded.network, getattr(torch, loaded.report.dtype))
    has_tokenizer = (place / MODEL_FILE).exists() or (place / JSON_FILE).exists()
    return loaded, Tokenizer.load(place) if has_tokenizer else None
