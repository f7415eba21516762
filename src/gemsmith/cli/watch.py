"""What a person sees of a run while it goes on."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from gemsmith.cli.progress import Bar
from gemsmith.evaluate.probe import Looking, Probe, prompts_of, small_slices
from gemsmith.infer.lm import LM
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.options import RunView, Watcher
from gemsmith.train.board import open_board
from gemsmith.train.journal import Pace, keep_until

SAMPLES_FILE, BOARD_FOLDER = "samples.jsonl", "tensorboard"


def watchers(
    view: RunView, *, n_probes: int, bar: Callable[[Pace], Bar] | None, closing: ExitStack
) -> Sequence[Watcher]:
    """Return a progress bar, a probe of held-out texts, and let TensorBoard listen to the journal.

    Args:
        n_probes: How often held-out texts are measured and samples written; 0 for never.
        bar: Starts a progress bar; None where there is no terminal.
        closing: Ends what must be ended.
    """
    step = view.state.step
    if (board := open_board(view.out / BOARD_FOLDER, step=step)) is not None:
        view.journal.listeners.append(board)
        closing.callback(board.close)
    found: list[Watcher] = [] if bar is None else [bar(view.journal.pace)]
    return [*found, _probe(view, n_probes)] if n_probes else found


def _probe(view: RunView, n_times: int) -> Probe:
    samples = view.out / SAMPLES_FILE
    keep_until(samples, view.state.step)
    slices = small_slices(view.held_out, [source.name for source in view.recipe.sources])
    config = view.recipe.model.config(view.tokenizer.vocab_size)
    lm = LM(Transformer(config, dtype=view.dtype), view.tokenizer, name="run")
    progress = view.budget.progress
    return Probe(
        lm,
        Looking(slices, prompts_of(slices), n_times, view.seen),
        write=view.journal.write,
        samples=samples,
        progress=progress,
        n_done=int(progress(view.state) * n_times),
    )
