"""Pretrain a network from texts: vocabulary, shards, training, and the folder that is shipped."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from gemsmith.config import ModelConfig
from gemsmith.data.dataset import Dataset
from gemsmith.data.index import read_index
from gemsmith.data.loader import Loader
from gemsmith.data.mixture import Batch, Mixture
from gemsmith.data.prepared import SHARDS, is_prepared, prepare
from gemsmith.data.vocabulary import Learning
from gemsmith.errors import DataError, TrainingError
from gemsmith.infer.allocator import tune_allocator
from gemsmith.recipes.dial import Derived, Dial, derive, filled
from gemsmith.recipes.export import export
from gemsmith.recipes.gradients import Gradients, schemes_of
from gemsmith.recipes.options import Compute, Options, RunView
from gemsmith.recipes.recipe import Recipe, Table, read_table, to_recipe
from gemsmith.recipes.run_folder import LOG_FILE, MODEL_FOLDER, begin, digest
from gemsmith.recipes.start import Start, check_vocabulary, find_start, start_weights
from gemsmith.train.checkpoint import Checkpointer, Every
from gemsmith.train.checkpoint_files import known_identity, refuse_changes
from gemsmith.train.cost import token_cost
from gemsmith.train.initial import initial_weights
from gemsmith.train.journal import Journal, Pace
from gemsmith.train.loop import Budget, StepReport, TrainState, fit
from gemsmith.train.memory import StepLoad, check_memory
from gemsmith.train.optimizer import build_optimizers
from gemsmith.train.run_lock import lock_run
from gemsmith.train.stop import StopOnSignal
from gemsmith.train.trace import NextBatches, Trace

_MINUTES_FILE = "minutes"
_READ_EVERY = 10  # steps


def run(
    recipe_path: Path,
    *,
    data_dir: Path,
    out: Path,
    minutes: float | None = None,
    steps: int | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    options: Options = Options(),  # noqa: B008 (frozen)
) -> Path:
    """Train a recipe in the run folder `out` and return the model folder; a run begun there goes on.

    A number written into the file `out`/minutes replaces `minutes` while the run goes on: a smaller
    one ends it sooner, with its rate brought down to nothing all the same.

    Args:
        data_dir: Folder the recipe's paths start from, or one that `gemsmith data build` wrote.
        minutes: Time in training steps; pauses of the process and watchers do not count.
        steps: Length in steps, instead of minutes; `options.dial.tokens` is the third way.

    Raises:
        TrainingError: None or several lengths are given, or they are not above 0.
        DataError: The recipe or its data cannot be used.
        MemoryLimitError: The run cannot fit; the setting that helps is named.
        CheckpointError: Another recipe, vocabulary or dataset was trained on in `out`.
        RunInterrupted: A signal stopped the run, which is saved.
    """
    tune_allocator(for_training=True)
    budget = _budget(minutes, steps, options.dial)
    recipe, table, derived = completed(recipe_path, data_dir, options.dial, start=options.start)
    config = recipe.model.config(recipe.vocabulary.size)
    schemes_of(recipe.quantization, config)
    start = None if recipe.start is None else find_start(recipe.start, config)
    check_memory(config, recipe.optimizer, load=step_load(recipe, compute))
    with lock_run(out):
        if known := known_identity(out):  # said before the folder's vocabulary and shards are made anew
            now = {"model": _model_hash(config)} | ({} if start is None else {"start": start.sha256})
            refuse_changes({name: known[name] for name in ("model", "start") if name in known}, now, place=out)
        facts = _facts(recipe, start, compute, options)
        begin(out, recipe_path, recipe=recipe, table=table, derived=derived, facts=facts)
        dataset = _dataset(recipe, data_dir, out, start)
        way = _Way(budget, compute, options, start)
        state = _train(recipe, dataset, out, way)
        return export(recipe, state, dataset.tokenizer, out / MODEL_FOLDER)


def completed(
    recipe_path: Path, data_dir: Path, dial: Dial, *, start: str | None = None
) -> tuple[Recipe, Table, list[Derived]]:
    """Return a recipe with what it leaves open, the same as a table, and the values that were derived.

    Args:
        start: Model to start from, instead of what the recipe says.
    """
    table = _with_vocabulary(read_table(recipe_path), data_dir)
    derived = derive(table, dial)
    if start is not None:
        derived.append(Derived("start", "model", start, "--from"))
    table = filled(table, derived)
    return to_recipe(table), table, derived


def step_load(recipe: Recipe, compute: Compute) -> StepLoad:
    """Return what a step of this recipe computes at one time, and how."""
    row = max(recipe.batch.row, recipe.batch.late_row)
    n_tokens = min(recipe.batch.tokens, compute.micro_batch_tokens or recipe.batch.tokens)
    n_rows = max(compute.n_processes, n_tokens // row)
    return StepLoad(
        n_rows,
        row,
        -(-recipe.batch.tokens // (n_rows * row)),
        compute.dtype,
        is_recomputed=compute.is_recomputed,
        n_processes=compute.n_processes,
        is_rounded=recipe.quantization is not None,
    )


def new_state(recipe: Recipe, config: ModelConfig, start: Start | None = None) -> TrainState:
    """Return a run before its first step."""
    weights = initial_weights(config, seed=recipe.batch.seed) if start is None else start_weights(start)
    return TrainState(weights, build_optimizers(weights, recipe.optimizer))


def next_batches(mixture: Mixture | Loader, recipe: Recipe, state: TrainState, progress: float) -> Sequence[Batch]:
    """Return the batch of the next step; the last part of a run begins once and then stays."""
    batch = recipe.batch
    if state.late_step is None and progress >= 1.0 - batch.late_share:
        state.late_step = state.step
    is_late = state.late_step is not None
    stage = mixture.stage(row=batch.late_row if is_late else batch.row, is_late=is_late)
    n_rows = batch.tokens // stage.row
    return [mixture.batch(stage, (state.step - (state.late_step or 0)) * n_rows, n_rows)]


def micro_batches(batches: Sequence[Batch], compute: Compute) -> Sequence[Batch]:
    """Split batches by rows into parts of at most `micro_batch_tokens`, or of one row for each process."""
    if compute.micro_batch_tokens is None:
        return batches
    parts = []
    for batch in batches:
        n_rows, row = batch.token_ids.shape
        size = compute.micro_batch_tokens // row // compute.n_processes * compute.n_processes or compute.n_processes
        parts += [_rows(batch, start, start + size) for start in range(0, n_rows, size)]
    return parts


@dataclass(frozen=True)
class _Way:
    """How a recipe is followed."""

    budget: Budget
    compute: Compute
    options: Options
    start: Start | None


def _train(recipe: Recipe, dataset: Dataset, out: Path, way: _Way) -> TrainState:
    """Train until the budget is spent, from the last checkpoint on."""
    budget, compute, options = way.budget, way.compute, way.options
    config = recipe.model.config(recipe.vocabulary.size)
    state = new_state(recipe, config, way.start)
    gradients = Gradients(recipe, config, compute)
    every = Every(steps=options.save_every_steps)
    checkpointer = Checkpointer(out, identity=_identity(recipe, config, dataset, way.start), every=every)
    checkpointer.resume(state)
    cost = token_cost(config, row=recipe.batch.row).total
    journal = Journal(out / LOG_FILE, Pace(cost, options.matrix_rate, budget.progress))
    journal.resume(state.step)
    seen = partial(gradients.seen, budget=budget)
    view = RunView(out, recipe, dataset.tokenizer, compute.dtype, state, budget, journal, dataset.held_out, seen)
    with ExitStack() as stack:
        mixture = dataset.mixture(recipe.sources, seed=recipe.batch.seed)
        loader = stack.enter_context(Loader(mixture, n_workers=compute.n_data_workers))
        stack.enter_context(checkpointer)
        stop = stack.enter_context(StopOnSignal(checkpointer))
        batches: NextBatches = partial(_next_micro_batches, loader, recipe, compute)
        reader = partial(_read_minutes, path=out / _MINUTES_FILE, budget=budget)
        others = [*options.watchers(view), reader, gradients.watcher(budget)]
        if options.trace is not None:
            trace = Trace(options.trace)
            batches, others = trace.over(batches), [trace, *others]
        fit(
            state,
            batches,
            gradients.loss(),
            spec=recipe.optimizer,
            budget=budget,
            accumulate=gradients.accumulate(state, budget),
            watchers=[journal, *others, checkpointer, stop],
        )
        checkpointer.save(state)
    return state


def _next_micro_batches(
    loader: Loader, recipe: Recipe, compute: Compute, state: TrainState, progress: float
) -> Sequence[Batch]:
    return micro_batches(next_batches(loader, recipe, state, progress), compute)


def _budget(minutes: float | None, steps: int | None, dial: Dial) -> Budget:
    """Return the one length of a run; tokens that follow from the parameters give way to a length that was given."""
    given = {"minutes": minutes, "steps": steps, "tokens": dial.tokens}
    if all(value is None for value in given.values()):
        given["tokens"] = dial.n_tokens
    chosen = [value for value in given.values() if value is not None]
    if len(chosen) != 1 or not 0 < chosen[0] < math.inf:
        words = ", ".join(f"{value!r} {name}" for name, value in given.items())
        raise TrainingError(f"a run must have one length, above 0; got {words}. Give one of them.")
    return Budget(steps, None if minutes is None else minutes * 60, given["tokens"])


def _with_vocabulary(table: Table, data_dir: Path) -> Table:
    """Add the size of the vocabulary where a recipe leaves it to the dataset that is trained on."""
    if "vocabulary" in table or not is_prepared(data_dir):
        return table
    return {**table, "vocabulary": {"size": read_index(data_dir / SHARDS).n_pieces}}


def _dataset(recipe: Recipe, data_dir: Path, out: Path, start: Start | None) -> Dataset:
    """Return the shards to train on; a run that starts from a model has its vocabulary.

    Raises:
        DataError: Their vocabulary has not the size the recipe says, or is not the model's.
    """
    spec = recipe.vocabulary
    vocabulary = Learning(spec.size, spec.sample_megabytes) if start is None else start.folder
    vocabulary = vocabulary if spec.path is None else data_dir / spec.path
    dataset = prepare(recipe.sources, vocabulary, data_dir=data_dir, out=out)
    if dataset.index.n_pieces != spec.size:
        raise DataError(
            f"size of the vocabulary must be that of the dataset's, {dataset.index.n_pieces}; got {spec.size} in the "
            "recipe. Correct [vocabulary], or build the dataset again."
        )
    if start is not None:
        check_vocabulary(start, dataset)
    return dataset


def _facts(recipe: Recipe, start: Start | None, compute: Compute, options: Options) -> dict[str, object]:
    """Return what `run.json` says about the machine, how it computes, what from and what for."""
    facts: dict[str, object] = {**options.machine, "compute": asdict(compute) | {"dtype": str(compute.dtype)}}
    facts["matrix_rate"] = options.matrix_rate
    if start is not None:
        facts["start"] = {"folder": str(start.folder), "sha256": start.sha256}
    if recipe.quantization is not None:
        facts["quantization"] = asdict(recipe.quantization)
    return facts


def _model_hash(config: ModelConfig) -> str:
    return hashlib.sha256(repr(config).encode()).hexdigest()


def _identity(recipe: Recipe, config: ModelConfig, dataset: Dataset, start: Start | None) -> dict[str, str]:
    return {
        **({} if start is None else {"start": start.sha256}),
        "model": _model_hash(config),
        "vocabulary": dataset.index.vocabulary.sha256,
        "data": dataset.fingerprint,
        "recipe": digest(recipe),
    }


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(*(getattr(batch, field.name)[start:stop] for field in fields(batch)))


def _read_minutes(state: TrainState, report: StepReport, *, path: Path, budget: Budget) -> None:
    if report.step % _READ_EVERY == 0 and budget.seconds is not None and path.is_file():
        try:
            budget.seconds = float(path.read_text()) * 60
        except ValueError as error:
            raise DataError(f"file 'minutes' must hold a number; got {error}. Write one such as 60.") from error
