"""A name in, an LM out: find the files, choose device and dtype, say so in one line."""

import logging
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from gemsmith.errors import CheckpointError, ConfigError
from gemsmith.infer.allocator import tune_allocator
from gemsmith.infer.device import choose_device, choose_dtype
from gemsmith.infer.lm import GEMMA_SAMPLING, LM
from gemsmith.infer.sample import Sampling
from gemsmith.kernels.large_pages import settle
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.quantized import QuantizedEmbedding, QuantizedLinear, quantize_network
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import load_network
from gemsmith.weights.foreign import is_gguf
from gemsmith.weights.generation import read_generation_config
from gemsmith.weights.gguf_load import GgufModel
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
    cache_dtype: torch.dtype | str | None = None,
    bits: Literal[4, 8] | None = None,
) -> LM:
    """Return a language model, ready to write.

    One line in the log "gemsmith" says what was chosen. No connection is opened.

    Args:
        name: "pebble" (the model in the box), a folder, a GGUF file, or a pulled name such as google/gemma-2-2b-it.
        device: "cpu", "cuda" or "mps"; the best one here where left out.
        dtype: "bfloat16" or "float32"; where left out that of the file, but float32 on a device that
            only emulates bfloat16.
        allow_config_keys: Unknown keys of config.json to pass over although they could change the numbers.
        pack: Bring weights on a CPU into their fastest form to multiply, those of a GGUF file in Q8_0 and
            Q4_0 in their own bits; False leaves plain parameters
            that can be trained and changed.
        cache_dtype: What keys and values are kept in: "int8" takes half the memory of bfloat16.
        bits: Round matrices while loading, 8 bits with a scale for each row, 4 with one for each 32 inputs.
            `gemsmith quantize` does so once, with less loss, and measures it.

    Raises:
        ModelNotFoundError: Nothing of that name is on this machine.
        CheckpointError: The files are incomplete or damaged.
        ConfigError: Device, dtype or the model's configuration cannot be had.
        TokenizerError: The vocabulary does not belong to the network.
        MemoryLimitError: The model does not fit.
    """
    place = choose_device(device)
    path = find_model(str(name))
    tune_allocator()
    with ThreadPoolExecutor(1) as beside:  # packing leaves Python alone, so a vocabulary is read meanwhile
        if is_gguf(path):
            model = GgufModel(path, allow_config_keys=allow_config_keys)
            tokenizer, sampling = beside.submit(model.tokenizer), GEMMA_SAMPLING
            stored = next(iter(model.formats))
            chosen = choose_dtype(dtype, stored=model.stored_dtype, device=place)
            loaded = model.network(dtype=chosen, device=place, is_native=pack and place.type == "cpu")
        else:
            tokenizer = beside.submit(Tokenizer.load, path)
            sampling, stored = suggested_sampling(read_generation_config(path)), stored_dtype(path)
            chosen = choose_dtype(dtype, stored=stored, device=place)
            loaded = load_network(path, dtype=chosen, device=place, allow_config_keys=allow_config_keys)
        if bits is not None:
            _round(loaded.network, bits)
        if pack:
            loaded.network.pack(release=loaded.files.release)
            settle(loaded.network.buffers())
    lm = LM(loaded.network, tokenizer.result(), name=str(name), sampling=sampling, cache_dtype=cache_dtype)
    threads = f", {torch.get_num_threads()} threads" if place.type == "cpu" else ""
    said = _words(chosen) if _words(chosen) == stored else f"{_words(chosen)} (stored in {stored})"
    _log.info("%s: %.1fM parameters in %s on %s%s", name, lm.config.n_params / 1e6, said, place, threads)
    return lm


def _round(network: Transformer, bits: Literal[4, 8]) -> None:
    """Round the matrices of a dense network to few bits."""
    if any(isinstance(module, QuantizedLinear | QuantizedEmbedding) for module in network.modules()):
        raise ConfigError(f"bits must be left out for a model stored in few bits; got {bits}. Load the dense one.")
    scheme = Scheme(bits, None if bits == 8 else 32)
    with torch.no_grad():
        quantize_network(network, lambda name, module: scheme)


def stored_dtype(folder: Path) -> str:
    """Return the dtype most bytes of a folder's weights are in, those in few bits aside."""
    n_bytes: Counter[str] = Counter()
    for entry in find_tensors(folder).values():
        if entry.dtype not in ("I8", "U8", "I32", "I64"):
            n_bytes[WEIGHT_DTYPES.get(entry.dtype, entry.dtype)] += entry.n_bytes
    if not n_bytes:
        raise CheckpointError(
            f"checkpoint must hold weights in {', '.join(WEIGHT_DTYPES.values())}; got integers alone in "
            f"{str(folder)!r}. Fetch it again."
        )
    return n_bytes.most_common(1)[0][0]


def suggested_sampling(suggestions: dict[str, Any]) -> Sampling:
    """Return the sampling a folder suggests; Gemma's usual one where it says nothing."""
    words = {word: suggestions[word] for word in _SAMPLING_WORDS if word in suggestions}
    if not words:
        return GEMMA_SAMPLING
    return Sampling(**{**words, "top_k": words.get("top_k") or None})


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
