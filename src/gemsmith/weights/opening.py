"""A model on this machine, folder or GGUF file, opened the same way."""

from collections.abc import Collection
from pathlib import Path

import torch

from gemsmith.config import ModelConfig
from gemsmith.tokenizer import JSON_FILE, MODEL_FILE, Tokenizer
from gemsmith.weights.folder import LoadedNetwork, load_network, read_config
from gemsmith.weights.foreign import is_gguf
from gemsmith.weights.gguf_load import GgufModel


def open_config(place: Path, *, allow_config_keys: Collection[str] = ()) -> ModelConfig:
    """Return what a model is made of."""
    if is_gguf(place):
        return GgufModel(place, allow_config_keys=allow_config_keys).config
    return read_config(place, allow_config_keys=allow_config_keys)


def open_model(
    place: Path, *, dtype: torch.dtype | str | None = None, allow_config_keys: Collection[str] = ()
) -> tuple[LoadedNetwork, Tokenizer | None]:
    """Return a dense network on the CPU and its tokenizer, None for a folder without one."""
    if is_gguf(place):
        model = GgufModel(place, allow_config_keys=allow_config_keys)
        return model.network(dtype=dtype, is_native=False), model.tokenizer()
    loaded = load_network(place, dtype=dtype, allow_config_keys=allow_config_keys)
    has_tokenizer = (place / MODEL_FILE).exists() or (place / JSON_FILE).exists()
    return loaded, Tokenizer.load(place) if has_tokenizer else None
