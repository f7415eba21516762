"""`gemsmith pretrain`: a model from a recipe and a folder of text."""

from pathlib import Path

from gemsmith.cli.console import UsageError, say, write


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
    from gemsmith.recipes.pretrain import Compute, run

    say(f"gemsmith: training; {out / 'log.jsonl'} tells how it goes. Ctrl-C stops, the same call goes on.")
    folder = run(recipe, data_dir=data, out=out, minutes=minutes, steps=steps, compute=Compute(n_processes=processes))
    say(f'gemsmith: trained. Try: gemsmith generate "Once upon a time" --model {folder}')
    write(str(folder))
    return 0
