"""What follows from the dial of `gemsmith pretrain`: every number with its source, memory and time."""

import math
from pathlib import Path
from typing import Any

import torch

from gemsmith.cli.console import UsageError, table, write
from gemsmith.infer.device import has_fast_bfloat16
from gemsmith.recipes.dial import Dial, derive, filled
from gemsmith.recipes.recipe import BatchSpec, Shape, VocabularySpec, read_section, read_table
from gemsmith.train.cost import measure_matrix_rate, token_cost
from gemsmith.train.journal import duration
from gemsmith.weights.memory import in_gb

_PIECES = 8192  # of the vocabulary where no recipe says


def show_plan(recipe: Path | None, dial: Dial) -> int:
    """Write what a run of this recipe and dial would be.

    Raises:
        UsageError: There is no dial to plan from.
    """
    if dial.params is None:
        raise UsageError("--plan must have --params to follow from; got none. Add it, such as --params 12M.")
    rows: Any = {"vocabulary": {"size": _PIECES}} if recipe is None else read_table(recipe)
    numbers = derive(rows, dial)
    known = {(number.section, number.name) for number in numbers}
    whole = filled(rows, numbers)
    lines = [("vocabulary.size", f"{whole['vocabulary']['size']:,}", "our choice" if recipe is None else "the recipe")]
    for section in ("model", "batch", "optimizer"):
        given = [(section, name) for name in whole[section] if (section, name) not in known]
        lines += [(f"{part}.{name}", _number(whole[part][name]), "the recipe") for part, name in given]
        lines += [(f"{section}.{n.name}", _number(n.value), n.source) for n in numbers if n.section == section]
    write(table([*lines, *_whole_run(whole, dial)]))
    return 0


def _whole_run(whole: Any, dial: Dial) -> list[tuple[str, str, str]]:
    """Return rows about the run as a whole."""
    size = read_section(whole, "vocabulary", VocabularySpec).size
    config = read_section(whole, "model", Shape).config(size)
    batch = read_section(whole, "batch", BatchSpec)
    tokens = dial.n_tokens or 0
    why = "--tokens" if dial.tokens else "20 per parameter: Chinchilla, arXiv:2203.15556, section 3"
    cost = token_cost(config, row=batch.row).total
    dtype = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    rate = measure_matrix_rate(dtype)
    least = cost * tokens / rate
    return [
        ("parameters", f"{config.n_params:,}", "the embedding included, which is the head too"),
        ("tokens", f"{tokens:,}", why),
        ("steps", f"{math.ceil(tokens / batch.tokens):,}", "tokens / batch.tokens"),
        (
            "FLOP per token",
            f"{cost:.3g}",
            "6 per weight and 12 per head size and visible key: arXiv:2204.02311, app. B",
        ),
        ("least time", duration(least), f"at all of the {rate / 1e12:.2f} TFLOP/s matrix rate measured now ({dtype})"),
        ("likely time", duration(least / 0.4), "at 40% of it"),
        (
            "weights, gradients, optimizer",
            in_gb(16 * config.n_params),
            "4 x 4 bytes a parameter; activations come on top",
        ),
    ]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
