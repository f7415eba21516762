"""`gemsmith info`: what a model is made of and what it needs, from its configuration alone."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from gemsmith.cli.console import table, write, write_json
from gemsmith.cli.flags import AsJson
from gemsmith.config import ModelConfig, preset
from gemsmith.errors import ConfigError, ModelNotFoundError
from gemsmith.weights.memory import in_gb

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Needs:
    """Bytes a model takes in one dtype.

    Attributes:
        full_cache: What the cache would be if local layers kept every key.
    """

    weights: int
    cache: int
    full_cache: int

    @property
    def total(self) -> int:
        """Weights and cache together."""
        return self.weights + self.cache


def info(model: str = "pebble", /, *, context: int | None = None, as_json: AsJson = False) -> int:
    """Show a model's size, layers and memory. Needs no weights for members of the family.

    Args:
        model: A preset (gemma-2-2b), a published name, a folder, a GGUF file, or a pulled model.
        context: Tokens the cache is to hold; the model's longest context when left out.
    """
    from gemsmith.model.cache import DEFAULT_SLACK
    from gemsmith.weights.opening import count_few_bits

    config, folder = find_config(model)
    context = check_context(config, context)
    few_bits = (0, 0) if folder is None else count_few_bits(folder)
    needs = {dtype: count_needs(config, context, dtype, few_bits) for dtype in DTYPES}
    if not as_json:
        write(table(describe(model, config, context=context, needs=needs, few_bits=few_bits)))
        return 0
    write_json(
        {
            "name": model,
            "folder": None if folder is None else str(folder),
            "family": config.family,
            "n_params": config.n_params,
            "n_layers": config.n_layers,
            "d_model": config.d_model,
            "vocab_size": config.vocab_size,
            "max_seq_len": config.max_seq_len,
            "context": context,
            "cache_bytes": needs["bfloat16"].cache,
            "cache_bytes_without_rings": needs["bfloat16"].full_cache,
            "cache_slack_tokens": DEFAULT_SLACK,
            "memory_bytes": {dtype: need.total for dtype, need in needs.items()},
            "few_bits": dict(zip(("n_weights", "bytes"), few_bits, strict=True)),
            "weight_bytes": {dtype: need.weights for dtype, need in needs.items()},
            "layers": [asdict(layer) for layer in config.layers],
        }
    )
    return 0


def find_config(name: str) -> tuple[ModelConfig, Path | None]:
    """Return a model's configuration and, where it is on this machine, its folder or file.

    Raises:
        ModelNotFoundError: No folder, pulled model or member of the family has that name.
    """
    from gemsmith.weights.catalog import find_model
    from gemsmith.weights.opening import open_config

    try:
        folder = find_model(name)
    except ModelNotFoundError as error:
        try:
            return preset(name), None
        except ModelNotFoundError:
            raise error from None
    return open_config(folder), folder


def check_context(config: ModelConfig, context: int | None) -> int:
    """Return the context to count for.

    Raises:
        ConfigError: It is not between 1 and the model's own.
    """
    if context is None:
        return config.max_seq_len
    if not 1 <= context <= config.max_seq_len:
        raise ConfigError(
            f"context must lie between 1 and the model's {config.max_seq_len} tokens; got {context}. "
            "Choose a length between them."
        )
    return context


def count_needs(config: ModelConfig, context: int, dtype_name: str, few_bits: tuple[int, int] = (0, 0)) -> Needs:
    """Count bytes for one document of `context` tokens.

    Args:
        few_bits: How many weights stay in few bits whatever the dtype, and their bytes.
    """
    import torch

    from gemsmith.model.cache import cache_bytes

    dtype: torch.dtype = getattr(torch, dtype_name)
    full = sum(2 * layer.n_kv_heads * layer.head_dim for layer in config.layers if layer.kv_source is None)
    return Needs(
        weights=few_bits[1] + (config.n_params - few_bits[0]) * dtype.itemsize,
        cache=cache_bytes(config, context, dtype=dtype),
        full_cache=full * context * dtype.itemsize,
    )


def describe(
    name: str, config: ModelConfig, *, context: int, needs: dict[str, Needs], few_bits: tuple[int, int]
) -> list[tuple[str, str]]:
    """Return the model as rows of name and words."""
    kinds = Counter((layer.kind, layer.window) for layer in config.layers)
    layers = ", ".join(f"{n} {kind}{f' (window {window:,})' if window else ''}" for (kind, window), n in kinds.items())
    first, half = config.layers[0], needs["bfloat16"]
    return [
        ("model", f"{name}, family {config.family}"),
        ("parameters", f"{config.n_params:,}"),
        *([("in few bits", f"{few_bits[0]:,} of them, in {in_gb(few_bits[1])}")] if few_bits[0] else []),
        ("layers", f"{config.n_layers}: {layers}"),
        ("heads", f"{first.n_heads} for queries, {first.n_kv_heads} for keys and values, {first.head_dim} wide"),
        ("width", f"{config.d_model:,}, feed-forward {first.d_ff:,}, vocabulary {config.vocab_size:,}"),
        ("context", f"up to {config.max_seq_len:,} tokens"),
        (
            "cache",
            f"{in_gb(half.cache)} for {context:,} tokens in bfloat16 ({in_gb(half.full_cache)} without rings)",
        ),
        *((f"memory, {dtype}", f"{in_gb(need.total)} with that cache") for dtype, need in needs.items()),
    ]
