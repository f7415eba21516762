"""`gemsmith pretrain`: a model from a recipe and a folder of text."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gemsmith.cli.console import UsageError, say, write

if TYPE_CHECKING:
    from gemsmith.recipes.pretrain import Compute


def pretrain(
    recipe: Path,
    /,
    *,
    data: Path,
    out: Path,
    minutes: float | None = None,
    steps: int | None = None,
    processes: int = 1,
) -> int:
    """Train a model from a recipe; called again with the same run folder, it goes on. The model folder goes to stdout.

    Args:
        recipe: A TOML file, such as recipes/pebble.toml.
        data: The folder the recipe's paths start from.
        out: The run folder: vocabulary, shards, log, checkpoints and, at the end, the model.
        minutes: How long to train; pauses of the process do not count.
        steps: How many steps to train, instead of minutes.
        processes: Processes that share out each batch; better than threads where others use the same cores.
    """
    if (minutes is None) == (steps is None):
        raise UsageError(f"run must have a length; got --minutes {minutes} and --steps {steps}. Give one of them.")
    from gemsmith.recipes.pretrain import run

    say(f"gemsmith: training; {out / 'log.jsonl'} tells how it goes. Ctrl-C stops, the same call goes on.")
    folder = run(recipe, data_dir=data, out=out, minutes=minutes, steps=steps, compute=choose_compute(processes))
    say(f'gemsmith: trained. Try: gemsmith generate "Once upon a time" --model {folder}')
    write(str(folder))
    return 0


def choose_compute(n_processes: int) -> "Compute":
    """Return the fastest way to train that this machine has, and say what is missing for a faster one."""
    import torch

    from gemsmith.infer.device import has_fast_bfloat16
    from gemsmith.recipes.pretrain import Compute

    is_compiled = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    if not is_compiled:
        say("gemsmith: no C++ compiler was found, so nothing is fused; with one, training is several times faster.")
    dtype = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    return Compute(dtype=dtype, is_compiled=is_compiled, n_processes=n_processes)
