"""A name in, an LM out: find the files, choose device and dtype, say so in one line."""

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from gemsmith.infer.allocator import tune_allocator
from gemsmith.infer.device import choose_device, choose_dtype
from gemsmith.infer.lm import GEMMA_SAMPLING, LM
from gemsmith.infer.sample import Sampling
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import load_network
from gemsmith.weights.generation import read_generation_config
from gemsmith.weights.header import WEIGHT_DTYPES
from gemsmith.weights.tensors import find_tensors

_log = logging.getLogger("gemsmith")
_SAMPLING_WORDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def load(
    name: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    allow_config_keys: Collection[str] = (),
    pack: bool = True,
) -> LM:
    """Return a language model, ready to write.

    One line in the log "gemsmith" says what was chosen. No connection is opened.

    Args:
        name: "pebble" (the model in the box), a folder, or a pulled name such as google/gemma-2-2b-it.
        device: "cpu", "cuda" or "mps"; the best one here where left out.
        dtype: "bfloat16" or "float32"; where left out that of the file, but float32 on a device that
            only emulates bfloat16.
        allow_config_keys: Unknown keys of config.json to pass over although they could change the numbers.
        pack: Bring weights on a CPU into their fastest form to multiply; False leaves plain parameters
            that can be trained and changed.

    Raises:
        ModelNotFoundError: Nothing of that name is on this machine.
        CheckpointError: The files are incomplete or damaged.
        ConfigError: Device, dtype or the model's configuration cannot be had.
        TokenizerError: The vocabulary does not belong to the network.
        MemoryLimitError: The model does not fit.
    """
    place = choose_device(device)
    folder = find_model(str(name))
    stored = stored_dtype(folder)
    chosen = choose_dtype(dtype, stored=stored, device=place)
    tune_allocator()
    loaded = load_network(folder, dtype=chosen, device=place, allow_config_keys=allow_config_keys)
    if pack:
        loaded.network.pack(release=loaded.files.release)
    lm = LM(
        loaded.network,
        Tokenizer.load(folder),
        name=str(name),
        sampling=suggested_sampling(read_generation_config(folder)),
    )
    threads = f", {torch.get_num_threads()} threads" if place.type == "cpu" else ""
    said = _words(chosen) if _words(chosen) == stored else f"{_words(chosen)} (stored in {stored})"
    _log.info("%s: %.1fM parameters in %s on %s%s", name, lm.config.n_params / 1e6, said, place, threads)
    return lm


def stored_dtype(folder: Path) -> str:
    """Return the dtype most bytes of a folder's weights are in."""
    n_bytes: Counter[str] = Counter()
    for entry in find_tensors(folder).values():
        n_bytes[WEIGHT_DTYPES.get(entry.dtype, entry.dtype)] += entry.n_bytes
    return n_bytes.most_common(1)[0][0]


def suggested_sampling(suggestions: dict[str, Any]) -> Sampling:
    """Return the sampling a folder suggests; Gemma's usual one where it says nothing."""
    words = {word: suggestions[word] for word in _SAMPLING_WORDS if word in suggestions}
    if not words:
        return GEMMA_SAMPLING
    return Sampling(**{**words, "top_k": words.get("top_k") or None})


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
