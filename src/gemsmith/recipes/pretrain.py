"""Pretrain a network from texts: vocabulary, shards, training, and the folder that is shipped."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.data.mixture import Batch, Mixture
from gemsmith.data.shards import Shard, build_shard, cached_shard
from gemsmith.data.sources import Source, sample_texts, source_documents
from gemsmith.data.tokenize import tokenize
from gemsmith.errors import DataError, TrainingError
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.recipe import Recipe, read_recipe
from gemsmith.tokenizer import Tokenizer, train_tokenizer
from gemsmith.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Accumulate, Budget, LossFn, StepReport, TrainState, accumulate, fit
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import build_optimizers
from gemsmith.train.workers import Workers
from gemsmith.weights.folder import save_folder

_say = logging.getLogger("gemsmith")
_LOG_EVERY = 10  # steps
_SAVE_EVERY = 300.0  # seconds of wall time
_FAMILY = "gemma2"
# Small models wander at full temperature and repeat themselves without any.
_SUGGESTED = {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


@dataclass(frozen=True)
class Compute:
    """How the arithmetic of a run is done.

    Attributes:
        dtype: Of the blocks' arithmetic; weights and optimizer stay in float32.
        is_compiled: Fuse with torch.compile, which needs a C++ compiler.
        n_processes: More than one share out each batch, with one thread each; better than threads
            where others use the same cores.
    """

    dtype: torch.dtype = torch.bfloat16
    is_compiled: bool = True
    n_processes: int = 1


DEFAULT_COMPUTE = Compute()


def run(
    recipe_path: Path,
    *,
    data_dir: Path,
    out: Path,
    minutes: float | None = None,
    steps: int | None = None,
    compute: Compute = DEFAULT_COMPUTE,
) -> Path:
    """Train a recipe in the run folder `out` and return the model folder; a run begun there goes on.

    A number written into the file `out`/minutes replaces `minutes` while the run goes on: a smaller
    one ends it sooner, with its rate brought down to nothing all the same.

    Args:
        data_dir: Folder the recipe's paths start from.
        minutes: Time in training steps; pauses of the process do not count.
        steps: Length in steps, instead of minutes.

    Raises:
        TrainingError: Neither or both of minutes and steps are given, or they are not above 0.
        DataError: The recipe or its data cannot be used.
    """
    budget = _budget(minutes, steps)
    recipe = read_recipe(recipe_path)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _vocabulary(recipe, data_dir, out)
    mixture = build_mixture(recipe, tokenizer, data_dir, out / "shards")
    config = recipe.model.config(tokenizer.vocab_size)
    state = new_state(recipe, config)
    identity = {"recipe": _digest(asdict(recipe)), "data": _digest({n: s.n_tokens for n, s in mixture.shards.items()})}
    if found := checkpoints(out):
        load_checkpoint(found[-1], state, identity=identity)
    spec = LossSpec(config.final_softcap, recipe.optimizer.z_weight)
    build_loss = partial(next_token_loss, config, spec, dtype=compute.dtype, is_compiled=compute.is_compiled)
    alone = compute.n_processes == 1
    minutes_file = partial(_read_minutes, path=out / "minutes", budget=budget)
    fit(
        state,
        partial(next_batches, mixture, recipe),
        build_loss(),
        spec=recipe.optimizer,
        budget=budget,
        accumulate=accumulate if alone else _workers(state.weights, build_loss, compute.n_processes),
        watchers=[_Log(out / "log.jsonl"), _Saver(out, identity), minutes_file],
    )
    save_checkpoint(out, state, identity=identity)
    return export(recipe, state, tokenizer, out / "model")


def new_state(recipe: Recipe, config: ModelConfig) -> TrainState:
    """Return a run before its first step."""
    weights = initial_weights(config, seed=recipe.batch.seed)
    return TrainState(weights, build_optimizers(weights, recipe.optimizer))


def build_mixture(recipe: Recipe, tokenizer: Tokenizer, data_dir: Path, folder: Path) -> Mixture:
    """Tokenize every source once, into `folder`, and mix them."""
    shards: dict[str, Shard] = {}
    vocabulary = hashlib.sha256(b"".join(tokenizer.piece(i).encode() for i in range(tokenizer.vocab_size))).hexdigest()
    for source in recipe.sources:
        stamp = {"source": _digest({k: v for k, v in asdict(source).items() if "share" not in k}), "by": vocabulary}
        build = partial(_build_source, source, tokenizer, data_dir)
        shards[source.name] = cached_shard(folder, source.name, stamp, build)
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    breaks = np.array([bool(piece) and not piece.strip("\n") for piece in pieces])
    return Mixture(recipe.sources, shards, breaks, recipe.batch.seed, bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id)


def export(recipe: Recipe, state: TrainState, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the model folder, in bfloat16, with where it came from in its manifest."""
    network = Transformer(recipe.model.config(tokenizer.vocab_size), dtype=torch.bfloat16)
    network.load_state_dict({name: weight.detach().to(torch.bfloat16) for name, weight in state.weights.items()})
    lineage = {
        "recipe_sha256": _digest(asdict(recipe)),
        "sources": {source.name: source.license for source in recipe.sources},
        **{name: getattr(state, name) for name in ("step", "n_tokens", "seconds", "late_step")},
    }
    return save_folder(folder, network, tokenizer=tokenizer, generation=_SUGGESTED, lineage=lineage)


def _build_source(source: Source, tokenizer: Tokenizer, data_dir: Path) -> Shard:
    documents = list(source_documents(source, data_dir))
    is_chat = any(document.turns for document in documents)
    return build_shard((tokenize(d, tokenizer, family=_FAMILY) for d in documents), is_chat=is_chat)


def _vocabulary(recipe: Recipe, data_dir: Path, out: Path) -> Tokenizer:
    """Return the run's vocabulary, learning it first where there is none."""
    folder = out / "vocabulary"
    if not (folder / "tokenizer.model").is_file():
        texts = sample_texts(list(recipe.sources), data_dir, megabytes=recipe.vocabulary.sample_megabytes)
        tokenizer = train_tokenizer(texts, vocab_size=recipe.vocabulary.size)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
    return Tokenizer.load(folder)


def next_batches(mixture: Mixture, recipe: Recipe, state: TrainState, progress: float) -> Sequence[Batch]:
    """Return the batch of the next step; the last part of a run begins once and then stays."""
    batch = recipe.batch
    if state.late_step is None and progress >= 1.0 - batch.late_share:
        state.late_step = state.step
    is_late = state.late_step is not None
    stage = mixture.stage(row=batch.late_row if is_late else batch.row, is_late=is_late)
    n_rows = batch.tokens // stage.row
    return [mixture.batch(stage, (state.step - (state.late_step or 0)) * n_rows, n_rows)]


def _workers(weights: dict[str, Tensor], build_loss: Callable[[], LossFn], n_processes: int) -> Accumulate:
    torch.set_num_threads(1)
    return Workers(weights, build_loss, n_processes=n_processes).accumulate


def _budget(minutes: float | None, steps: int | None) -> Budget:
    if (minutes is None) == (steps is None) or not (minutes or steps or 0) > 0:
        raise TrainingError(
            f"a run must have a length in minutes or in steps, above 0; got {minutes!r} and {steps!r}. Give one."
        )
    return Budget(steps, None if minutes is None else minutes * 60)


def _read_minutes(state: TrainState, report: StepReport, *, path: Path, budget: Budget) -> None:
    if report.step % _LOG_EVERY == 0 and budget.seconds is not None and path.is_file():
        try:
            budget.seconds = float(path.read_text()) * 60
        except ValueError as error:
            raise DataError(f"file 'minutes' must hold a number; got {error}. Write one such as 60.") from error


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class _Log:
    """Append a line of JSON every few steps, and say it in the log "gemsmith"."""

    def __init__(self, path: Path) -> None:
        self.path, self.losses, self.seen = path, [], (0, perf_counter())

    def __call__(self, state: TrainState, report: StepReport) -> None:
        self.losses.append(report.nll)
        if report.step % _LOG_EVERY:
            return
        n_tokens, since = self.seen
        self.seen = (report.n_tokens, perf_counter())
        row = {
            **asdict(report),
            "nll": sum(self.losses) / len(self.losses),
            "seconds": round(state.seconds, 1),
            "tokens_per_s": round((report.n_tokens - n_tokens) / (self.seen[1] - since)) if n_tokens else None,
            "is_late": state.late_step is not None,
        }
        self.losses = []
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        pace = "" if row["tokens_per_s"] is None else f", {row['tokens_per_s']:,} tokens/s"
        minutes = state.seconds / 60
        _say.info("step %d: %.3f nats a token%s, %.1f minutes", report.step, row["nll"], pace, minutes)


class _Saver:
    """Write a checkpoint every few minutes."""

    def __init__(self, out: Path, identity: dict[str, str]) -> None:
        self.out, self.identity, self.last = out, identity, perf_counter()

    def __call__(self, state: TrainState, report: StepReport) -> None:
        if perf_counter() - self.last > _SAVE_EVERY:
            save_checkpoint(self.out, state, identity=self.identity)
            self.last = perf_counter()
