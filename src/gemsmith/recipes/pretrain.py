"""Pretrain a network from texts: vocabulary, shards, training, and the folder that is shipped."""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch

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
from gemsmith.recipes.options import Compute, Options, RunView
from gemsmith.recipes.recipe import Recipe, Table, read_table, to_recipe
from gemsmith.recipes.run_folder import LOG_FILE, MODEL_FOLDER, begin, digest
from gemsmith.train.checkpoint import Checkpointer, Every
from gemsmith.train.checkpoint_files import known_identity, refuse_changes
from gemsmith.train.cost import token_cost
from gemsmith.train.initial import initial_weights
from gemsmith.train.journal import Journal, Pace
from gemsmith.train.loop import Accumulate, Budget, LossFn, StepReport, TrainState, accumulate, fit
from gemsmith.train.loss import LossSpec
from gemsmith.train.memory import StepLoad, check_memory
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import build_optimizers
from gemsmith.train.run_lock import lock_run
from gemsmith.train.stop import StopOnSignal
from gemsmith.train.trace import NextBatches, Trace
from gemsmith.train.workers import Workers

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
    recipe, table, derived = completed(recipe_path, data_dir, options.dial)
    check_memory(recipe.model.config(recipe.vocabulary.size), recipe.optimizer, load=step_load(recipe, compute))
    with lock_run(out):
        if known := known_identity(out):  # said before the folder's vocabulary and shards are made anew
            model = _model_hash(recipe.model.config(recipe.vocabulary.size))
            refuse_changes({"model": known.get("model", "")}, {"model": model}, place=out)
        facts = {**options.machine, "compute": asdict(compute) | {"dtype": str(compute.dtype)}}
        facts["matrix_rate"] = options.matrix_rate
        begin(out, recipe_path, recipe=recipe, table=table, derived=derived, facts=facts)
        dataset = _dataset(recipe, data_dir, out)
        state = _train(recipe, dataset, out, budget=budget, compute=compute, options=options)
        return export(recipe, state, dataset.tokenizer, out / MODEL_FOLDER)


def completed(recipe_path: Path, data_dir: Path, dial: Dial) -> tuple[Recipe, Table, list[Derived]]:
    """Return a recipe with what it leaves open, the same as a table, and the numbers that were derived."""
    table = _with_vocabulary(read_table(recipe_path), data_dir)
    derived = derive(table, dial)
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
    )


def new_state(recipe: Recipe, config: ModelConfig) -> TrainState:
    """Return a run before its first step."""
    weights = initial_weights(config, seed=recipe.batch.seed)
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


def _train(
    recipe: Recipe, dataset: Dataset, out: Path, *, budget: Budget, compute: Compute, options: Options
) -> TrainState:
    """Train until the budget is spent, from the last checkpoint on."""
    config = recipe.model.config(recipe.vocabulary.size)
    state = new_state(recipe, config)
    every = Every(steps=options.save_every_steps)
    checkpointer = Checkpointer(out, identity=_identity(recipe, config, dataset), every=every)
    checkpointer.resume(state)
    cost = token_cost(config, row=recipe.batch.row).total
    journal = Journal(out / LOG_FILE, Pace(cost, options.matrix_rate, budget.progress))
    journal.resume(state.step)
    view = RunView(out, recipe, dataset.tokenizer, compute.dtype, state, budget, journal, dataset.held_out)
    with ExitStack() as stack:
        mixture = dataset.mixture(recipe.sources, seed=recipe.batch.seed)
        loader = stack.enter_context(Loader(mixture, n_workers=compute.n_data_workers))
        stack.enter_context(checkpointer)
        stop = stack.enter_context(StopOnSignal(checkpointer))
        build_loss = _loss_builder(recipe, config, compute)
        batches: NextBatches = partial(_next_micro_batches, loader, recipe, compute)
        others = [*options.watchers(view), partial(_read_minutes, path=out / _MINUTES_FILE, budget=budget)]
        if options.trace is not None:
            trace = Trace(options.trace)
            batches, others = trace.over(batches), [trace, *others]
        fit(
            state,
            batches,
            build_loss(),
            spec=recipe.optimizer,
            budget=budget,
            accumulate=_accumulate(state, build_loss, compute.n_processes),
            watchers=[journal, *others, checkpointer, stop],
        )
        checkpointer.save(state)
    return state


def _next_micro_batches(
    loader: Loader, recipe: Recipe, compute: Compute, state: TrainState, progress: float
) -> Sequence[Batch]:
    return micro_batches(next_batches(loader, recipe, state, progress), compute)


def _loss_builder(recipe: Recipe, config: ModelConfig, compute: Compute) -> Callable[[], LossFn]:
    spec = LossSpec(config.final_softcap, recipe.optimizer.z_weight)
    flags = {name: getattr(compute, name) for name in ("dtype", "is_compiled", "is_recomputed")}
    return partial(next_token_loss, config, spec, **flags)


def _accumulate(state: TrainState, build_loss: Callable[[], LossFn], n_processes: int) -> Accumulate:
    if n_processes == 1:
        return accumulate
    torch.set_num_threads(1)
    return Workers(state.weights, build_loss, n_processes=n_processes).accumulate


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


def _dataset(recipe: Recipe, data_dir: Path, out: Path) -> Dataset:
    """Return the shards to train on.

    Raises:
        DataError: Their vocabulary has not the size the recipe says.
    """
    spec = recipe.vocabulary
    vocabulary = Learning(spec.size, spec.sample_megabytes) if spec.path is None else data_dir / spec.path
    dataset = prepare(recipe.sources, vocabulary, data_dir=data_dir, out=out)
    if dataset.index.n_pieces != spec.size:
        raise DataError(
            f"size of the vocabulary must be that of the dataset's, {dataset.index.n_pieces}; got {spec.size} in the "
            "recipe. Correct [vocabulary], or build the dataset again."
        )
    return dataset


def _model_hash(config: ModelConfig) -> str:
    return hashlib.sha256(repr(config).encode()).hexdigest()


def _identity(recipe: Recipe, config: ModelConfig, dataset: Dataset) -> dict[str, str]:
    return {
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
