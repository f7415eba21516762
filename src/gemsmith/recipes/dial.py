"""One dial, parameters and tokens, from which sizes, rates and batch of a recipe follow."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemsmith.config import ModelConfig
from gemsmith.errors import ConfigError, DataError
from gemsmith.recipes.recipe import Shape, Table, VocabularySpec, read_section
from gemsmith.train.cost import token_cost

_STEP = 64  # sizes are multiples of it
_MAX_WIDTH, _MAX_LAYERS = 8192, 128
_CLOSE, _FARTHEST = 0.02, 0.05  # of the parameters asked for: looked for first, and allowed
# Gemma 2 report, arXiv:2408.00118, table 1: 2304 / 26 and 3584 / 42; d_ff is four times the width.
_WIDTH_PER_LAYER, _FF_PER_WIDTH = 86.0, 4.0
_FF_RANGE = (2.0, 8.0)  # 8 is the 27B model's
_CONTEXT = 1024
_TOKENS_PER_PARAM = 20

_GEMMA2 = "Gemma 2 report, arXiv:2408.00118, table 1"
_PROPORTIONS = f"nearest to {_GEMMA2}: width / layers 86, d_ff / width 4; both matter little (arXiv:2001.08361, 3.1)"
_SCALING = "arXiv:2401.02954, section 3.1, with C = {compute:.2g} FLOP without the vocabulary"


@dataclass(frozen=True)
class Dial:
    """What a run is asked for.

    Attributes:
        params: Parameters of the network, the embedding included; None leaves sizes to the recipe.
        tokens: Tokens to train on; None derives them where `params` is given.
    """

    params: int | None = None
    tokens: int | None = None

    @property
    def n_tokens(self) -> int | None:
        """Tokens to train on: those given, or 20 per parameter."""
        return self.tokens or (None if self.params is None else _TOKENS_PER_PARAM * self.params)


@dataclass(frozen=True)
class Derived:
    """A value of a recipe that followed from the dial or was given beside it, and why."""

    section: str
    name: str
    value: int | float | str
    source: str


def derive(table: Table, dial: Dial) -> list[Derived]:
    """Return the numbers a recipe's table lacks; what it has stays, and the others follow from it.

    Raises:
        DataError: No network of the sizes tried comes within 5% of the parameters.
    """
    if dial.params is None or dial.n_tokens is None:
        return []
    vocab_size = read_section(table, "vocabulary", VocabularySpec).size
    given = table.get("model", {})
    try:
        shape = _shape(given, dial.params, vocab_size)
        config = shape.config(vocab_size)
    except ConfigError as error:
        raise DataError(
            f"[model] must leave sizes that fit; got {dict(given)!r} ({error}). Give fewer keys."
        ) from error
    found = [*_of_model(shape, config), *_of_training(table, config, dial.n_tokens)]
    return [number for number in found if number.name not in table.get(number.section, {})]


def filled(table: Table, numbers: list[Derived]) -> Table:
    """Return a recipe's table with derived numbers in it."""
    whole: dict[str, Any] = {
        name: dict(section) if isinstance(section, dict) else section for name, section in table.items()
    }
    for number in numbers:
        whole.setdefault(number.section, {})[number.name] = number.value
    return whole


def _shape(given: Table, params: int, vocab_size: int) -> Shape:
    """Return the sizes nearest to Gemma 2's proportions among those near the parameters asked for.

    Raises:
        DataError: None are near.
    """
    counted = list(_shapes(given, params, vocab_size))
    for allowed in (_CLOSE, _FARTHEST):
        near = [shape for shape, count in counted if abs(count - params) <= allowed * params]
        if near:
            return min(near, key=_distance)
    counts = sorted((count for _, count in counted), key=lambda count: abs(count - params))
    raise DataError(
        f"params must be within 5% of a network in steps of {_STEP} with {vocab_size:,} pieces"
        f"{f' and {dict(given)}' if given else ''}; got {params:,}, and the nearest has {counts[0]:,}. "
        f"Ask for about {counts[0]:,}, or take another vocabulary."
    )


def _shapes(given: Table, params: int, vocab_size: int) -> Iterator[tuple[Shape, int]]:
    """Yield a shape for every width and depth, its feed-forward width chosen to meet the parameters, and its count."""
    widths = [given["d_model"]] if "d_model" in given else range(_STEP, _MAX_WIDTH + 1, _STEP)
    depths = [given["n_layers"]] if "n_layers" in given else range(2, _MAX_LAYERS + 1, 2)
    max_seq_len = given.get("max_seq_len", _CONTEXT)
    context = {"max_seq_len": max_seq_len, "window": given.get("window", max(1, max_seq_len // 2))}
    for width in widths:
        parts = {**_heads(width, given), **context, "d_model": width}
        thin = Shape(**parts, n_layers=1, d_ff=1).config(vocab_size)
        per_ff = 3 * width  # parameters of a layer for every unit of d_ff
        layer = thin.layers[0].n_params(width) - per_ff
        outside = thin.n_params - layer - per_ff
        low, high = (math.ceil(factor * width / _STEP) * _STEP for factor in _FF_RANGE)
        for depth in depths:
            fitting = round(((params - outside) / depth - layer) / per_ff / _STEP) * _STEP
            d_ff = given.get("d_ff", min(max(fitting, low), high))
            yield Shape(**parts, n_layers=depth, d_ff=d_ff), outside + depth * (layer + per_ff * d_ff)


def _heads(width: int, given: Table) -> dict[str, int]:
    """Return heads that are together about as wide as the network, two to a key/value head."""
    usual = 256 if width >= 1024 else 64 if width >= 128 else 32
    head_dim = given.get("head_dim", usual)
    n_kv_heads = given.get("n_kv_heads", max(1, round(width / head_dim / 2)))
    n_heads = given.get("n_heads", 2 * n_kv_heads)
    if "n_kv_heads" not in given and n_heads % n_kv_heads:
        n_kv_heads = max(1, n_heads // 2) if n_heads % 2 == 0 else 1
    return {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}


def _distance(shape: Shape) -> float:
    """Return how far a shape is from Gemma 2's proportions."""
    per_layer, per_width = shape.d_model / shape.n_layers, shape.d_ff / shape.d_model
    return abs(math.log(per_layer / _WIDTH_PER_LAYER)) + abs(math.log(per_width / _FF_PER_WIDTH))


def _of_model(shape: Shape, config: ModelConfig) -> Iterator[Derived]:
    sources = {
        "d_model": f"{config.n_params:,} parameters; {_PROPORTIONS}",
        "n_layers": _PROPORTIONS,
        "d_ff": _PROPORTIONS,
        "n_heads": f"heads together about as wide as the network: {_GEMMA2}",
        "n_kv_heads": f"half of n_heads: {_GEMMA2}",
        "head_dim": f"256 as in {_GEMMA2}; 64 below a width of 1,024, so that there are several heads",
        "window": f"half of max_seq_len: {_GEMMA2}",
        "max_seq_len": "our choice: room for a page of text",
    }
    for name, source in sources.items():
        yield Derived("model", name, getattr(shape, name), source)


def _of_training(table: Table, config: ModelConfig, n_tokens: int) -> Iterator[Derived]:
    """Yield batch and optimizer.

    Source: batch and rate are power laws of the compute C = (FLOP of a token without the vocabulary) x
    tokens, fitted from 1e17 FLOP upwards: DeepSeek LLM, arXiv:2401.02954, section 3.1.
    """
    row = table.get("batch", {}).get("row", config.max_seq_len)
    cost = token_cost(config, row=row)
    compute = (cost.blocks + cost.attention) * n_tokens
    scaling = _SCALING.format(compute=compute) + ("" if compute >= 1e17 else " (below the range it was fitted in)")
    rows = max(1, 2 * round(0.2920 * compute**0.3271 / row / 2))  # even, so that two processes can share them
    batch = table.get("batch", {}).get("tokens", rows * row)
    rate = float(f"{0.3118 * compute**-0.1250:.3g}")
    steps = math.ceil(n_tokens / batch)
    yield Derived("batch", "tokens", batch, f"0.2920 C^0.3271: {scaling}")
    yield Derived("batch", "row", row, "max_seq_len")
    yield Derived("batch", "late_row", row, "the row of the main part")
    yield Derived("batch", "late_share", 0.2, "the part in which the rate falls")
    yield Derived("optimizer", "other_rate", rate, f"AdamW, 0.3118 C^-0.1250: {scaling}")
    yield Derived(
        "optimizer", "matrix_rate", rate, "Muon's updates have the size of AdamW's: arXiv:2502.16982, section 2.2"
    )
    yield Derived("optimizer", "weight_decay", 0.1, "arXiv:2401.02954, section 2.3, and arXiv:2502.16982, section 2.2")
    yield Derived(
        "optimizer", "warmup_steps", min(40, steps // 10),
        f"2 / (1 - beta2) with beta2 = 0.95, arXiv:1910.04209; at most a tenth of {steps:,} steps",
    )  # fmt: skip
    yield Derived("optimizer", "decay_share", 0.2, "arXiv:2405.18392: a fall over a fifth does as well as cosine")
    yield Derived("optimizer", "clip", 1.0, "arXiv:2401.02954, section 2.3")
    yield Derived("optimizer", "z_weight", 1e-4, "PaLM, arXiv:2204.02311, section 5")
