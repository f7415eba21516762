"""The proof that a killed run loses nothing: kill it at twenty points, resume it, compare every bit."""

import math
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gemsmith.data.build import build_dataset
from gemsmith.data.dataset import Dataset, open_dataset
from gemsmith.data.forms import TEXT_FORMS
from gemsmith.data.mixture import Mixture
from gemsmith.data.prepared import SHARDS, VOCABULARY, is_prepared
from gemsmith.data.sources import Source
from gemsmith.data.vocabulary import Learning, given_vocabulary, learned_vocabulary
from gemsmith.errors import TrainingError
from gemsmith.recipes.dial import Dial
from gemsmith.recipes.options import Compute, Options, RunView, Watcher
from gemsmith.recipes.pretrain import completed, run
from gemsmith.recipes.recipe import OPTIONAL, SECTIONS, BatchSpec, Recipe
from gemsmith.recipes.run_folder import RECIPE_FILE, render
from gemsmith.train.checkpoint_files import checkpoints, read_checkpoint
from gemsmith.train.difference import first_difference
from gemsmith.train.kill_points import Kill, kill_points
from gemsmith.train.loop import StepReport, TrainState
from gemsmith.train.trace import TRACE_FILE, read_trace
from gemsmith.weights.catalog import find_model

N_KILLS = 20
_STEPS, _SAVE_EVERY = 10, 2
_MEGABYTES = 1.0  # read of each source; one of them is cut so short that its epochs turn
_TIME_ALLOWED = 1800.0  # seconds one run may take
_SLOW_IMPORTS = ("torch._dynamo",)  # by the first optimizer of a process, 1.4 s


@dataclass(frozen=True)
class Proof:
    """What became of every kill; a difference names what differed first, None is bit-equal."""

    differences: tuple[str | None, ...]

    @property
    def is_bit_equal(self) -> bool:
        """Whether nothing differed anywhere."""
        return not any(self.differences)

    def __str__(self) -> str:
        n_equal = sum(difference is None for difference in self.differences)
        if self.is_bit_equal:
            return f"{n_equal} of {len(self.differences)} kills, bit-equal"
        first = next(difference for difference in self.differences if difference)
        return f"{n_equal} of {len(self.differences)} kills are bit-equal; first difference: {first}"


def prove_resume(
    recipe_path: Path,
    *,
    data_dir: Path,
    dial: Dial = Dial(),  # noqa: B008 (frozen)
    n_kills: int = N_KILLS,
    steps: int = _STEPS,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    tell: Callable[[str], None] = print,
) -> Proof:
    """Kill short runs of a recipe with SIGKILL, let each go on, and compare it with a run never killed.

    The runs have the recipe's model, vocabulary and optimizer, but few steps of few rows, over a part of the
    texts in which epochs turn (a folder that `gemsmith data build` wrote is used whole). Compared are
    weights, optimizers, random state and every counter of
    the last checkpoint, and for every step, also those that were made twice, the batches, the loss and
    the norm of the gradient. Every run has one thread and is not compiled.

    Args:
        data_dir: Folder the recipe's paths start from, or one that was built.
        dial: Parameters and tokens for what the recipe leaves open.
        n_kills: Fewer than 20 take some of the points.
        steps: Length of a run, at least 8, so that older checkpoints are removed.
        tell: Gets a line per kill.

    Raises:
        TrainingError: A run did not die where it should have, or failed for another reason.
    """
    with tempfile.TemporaryDirectory(prefix="gemsmith-proof-") as name:
        proof = _Proof(Path(name), steps, compute)
        with _children() as start:
            proof.prepare(completed(recipe_path, data_dir, dial)[0], data_dir)
            tell(f"a run of {steps} steps that nobody kills")
            _expect(proof.train(start, "through"), 0, "that nobody kills")
            differences = []
            for number, kill in enumerate(proof.kills(n_kills), 1):
                difference = proof.difference(start, kill)
                differences.append(difference and f"kill {number}, {kill.what}: {difference}")
                tell(f"{number:2}. killed {kill.what}: {difference or 'bit-equal'}")
    return Proof(tuple(differences))


@dataclass
class _Proof:
    """The folder of a proof: one recipe, one dataset, and a run folder per kill."""

    place: Path
    steps: int
    compute: Compute

    def prepare(self, recipe: Recipe, data_dir: Path) -> None:
        """Write the shortened recipe and build its data once for all runs."""
        short = shortened(recipe, self.steps)
        if is_prepared(data_dir):
            own = {source.name: source for source in recipe.sources}
            sources = (replace(own[source.name], max_epochs=source.max_epochs) for source in short.sources)
            short, dataset = replace(short, sources=tuple(sources)), open_dataset(data_dir / SHARDS)
        else:
            dataset = self._build(recipe, short.sources, data_dir)
        (self.place / RECIPE_FILE).write_text(render(_table(short), ()), encoding="utf-8")
        parts = {"n_processes": 1, "is_compiled": False, "micro_batch_tokens": short.batch.tokens // 2}
        self.compute, self.data = replace(self.compute, **parts), dataset.folder.parent
        self.recipe, self.mixture = short, dataset.mixture(short.sources, seed=short.batch.seed)

    def _build(self, recipe: Recipe, sources: Sequence[Source], data_dir: Path) -> Dataset:
        """Tokenize part of the texts with the vocabulary of all of them."""
        spec = recipe.vocabulary
        if spec.path is not None:
            tokenizer = given_vocabulary(data_dir / spec.path, size=spec.size)
        elif recipe.start is not None:
            tokenizer = given_vocabulary(find_model(recipe.start.model), size=spec.size)
        else:
            learning, folder = Learning(spec.size, spec.sample_megabytes), self.place / VOCABULARY
            tokenizer = learned_vocabulary(recipe.sources, data_dir, folder=folder, learning=learning)
        return build_dataset(sources, tokenizer, data_dir=data_dir, folder=self.place / "data" / SHARDS)

    def train(self, start: Callable[..., int], out: str, *, die_at: str = "", n_data_workers: int = 0) -> int:
        """Train in a process of its own, as far as it comes; return its exit status."""
        compute = replace(self.compute, n_data_workers=n_data_workers)
        return start(self.place, self.data, self.place / out, self.steps, compute, die_at)

    def difference(self, start: Callable[..., int], kill: Kill) -> str | None:
        """Kill a run, let it go on, and say what differs from the run that nobody killed."""
        train = partial(self.train, start, "killed", n_data_workers=kill.n_data_workers)
        _expect(train(die_at=f"{kill.point}:{kill.count}"), -signal.SIGKILL, f"killed {kill.what}")
        _expect(train(), 0, f"resumed after a kill {kill.what}")
        found = first_difference(self.place / "through", self.place / "killed", steps=self.steps)
        shutil.rmtree(self.place / "killed")
        return found

    def kills(self, n_kills: int) -> list[Kill]:
        """Return where to kill, evenly picked if fewer are wanted than there are."""
        last = read_checkpoint(checkpoints(self.place / "through")[-1])
        n_micro = len(read_trace(self.place / "through" / TRACE_FILE)[0]["batches"])
        late = last.facts["state"]["late_step"]
        turns = epoch_turns(self.mixture, self.recipe.batch, steps=self.steps, late_step=late)
        found = kill_points(
            self.steps,
            n_micro=n_micro,
            n_tensors=len(last.tensors),
            turns=turns,
            late_step=late or self.steps // 2,
            save_every=_SAVE_EVERY,
        )
        return [found[index * len(found) // n_kills] for index in range(min(n_kills, len(found)))]


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with four rows a step, less text, and one source so short that its epochs turn."""
    batch = recipe.batch
    tokens = 2 * math.lcm(batch.row, batch.late_row)
    texts = [source for source in recipe.sources if source.form in TEXT_FORMS] or list(recipe.sources)
    largest = max(texts, key=lambda source: source.share)
    share = largest.share / sum(source.share for source in recipe.sources)
    few = tokens * steps * share / 4 / 1e6  # a quarter of a byte for each of its tokens: there are several epochs

    def short(source: Source) -> Source:
        changes = {"held_out": 0.0, "megabytes": few} if source is largest else {}
        return replace(source, **{"megabytes": min(source.megabytes, _MEGABYTES), "max_epochs": 10**6, **changes})

    return replace(recipe, batch=replace(batch, tokens=tokens), sources=tuple(map(short, recipe.sources)))


def epoch_turns(mixture: Mixture, batch: BatchSpec, *, steps: int, late_step: int | None) -> list[int]:
    """Return the steps, counted from 1, with the first row of a further epoch of a source."""
    turns = []
    for step in range(steps):
        is_late = late_step is not None and step >= late_step
        row, first = (batch.late_row, late_step or 0) if is_late else (batch.row, 0)
        stage, n_rows = mixture.stage(row=row, is_late=is_late), batch.tokens // row
        numbers = range((step - first) * n_rows, (step - first + 1) * n_rows)
        if any(epoch > 0 and index == 0 for _, epoch, index in (mixture.seen(stage, number) for number in numbers)):
            turns.append(step + 1)
    return turns


def _table(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as the table of a TOML file, which has no word for None."""

    def plain(section: object) -> dict[str, Any]:
        values = asdict(section).items()  # pyright: ignore[reportArgumentType]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values if v is not None and v != math.inf}

    sections = {name: getattr(recipe, name) for name in (*SECTIONS, *OPTIONAL)}
    table: dict[str, Any] = {name: plain(section) for name, section in sections.items() if section is not None}
    return {**table, "sources": [plain(source) for source in recipe.sources]}


def _expect(status: int, wanted: int, which: str) -> None:
    if status != wanted:
        ends = {0: "its end", -signal.SIGKILL: "its death"}
        raise TrainingError(
            f"a run must come to {ends[wanted]}; got exit status {status} for the one {which}. "
            "Look for its message above."
        )


@contextmanager
def _children() -> Iterator[Callable[..., int]]:
    """Give a function that trains in a fresh process and returns its exit status.

    Children are forked from a process that has imported everything and computed nothing, so that
    each starts at once and torch's threads are born after the fork.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_SLOW_IMPORTS])

    def start(*job: object) -> int:
        child = context.Process(target=_train, args=job)
        child.start()
        child.join(_TIME_ALLOWED)
        if child.is_alive():
            child.kill()
            child.join()
            raise TrainingError(f"a run of the proof must end; got none in {_TIME_ALLOWED:.0f} s. Use fewer steps.")
        return child.exitcode or 0

    yield start


def _train(place: Path, data_dir: Path, out: Path, steps: int, compute: Compute, die_at: str) -> None:
    """Train in this process, one thread, to the end or to the point it dies at."""
    torch.set_num_threads(1)
    if die_at:
        os.environ["GEMSMITH_DIE_AT"] = die_at
    options = Options(save_every_steps=_SAVE_EVERY, trace=out / TRACE_FILE, watchers=_dice)
    run(place / RECIPE_FILE, data_dir=data_dir, out=out, steps=steps, compute=compute, options=options)


def _dice(view: RunView) -> list[Watcher]:
    """Draw a number after every step, so that torch's random state has something to lose."""

    def draw(state: TrainState, report: StepReport) -> None:
        torch.rand(1)

    return [draw]
