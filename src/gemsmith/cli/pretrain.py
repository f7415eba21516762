"""`gemsmith pretrain`: a model from a recipe and a folder of text."""

import math
import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gemsmith.cli.console import UsageError, say, write
from gemsmith.cli.machine import read_cpu, total_memory

if TYPE_CHECKING:
    from gemsmith.recipes.dial import Dial
    from gemsmith.recipes.options import Compute

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LengthFlags:
    """How long to train, how large a model, and from what.

    Attributes:
        minutes: How long to train; pauses of the process do not count.
        steps: How many steps to train.
        tokens: How many tokens to train on, such as 100M; 20 for each of --params when no length is given.
        params: Parameters of the model, such as 12M; what the recipe leaves out of [model], [batch] and
            [optimizer] follows from them and the tokens.
        start: A model to start from instead of fresh weights: the box, a folder, or a pulled name.
    """

    minutes: float | None = None
    steps: int | None = None
    tokens: str | None = None
    params: str | None = None
    start: Annotated[str | None, Parameter(name="--from")] = None

    def check(self) -> None:
        """Refuse a call without a length, or with several.

        Raises:
            UsageError: It is such a call.
        """
        given = {name: getattr(self, name) for name in ("minutes", "steps", "tokens")}
        lengths = {name: value for name, value in given.items() if value is not None}
        if len(lengths) > 1 or (not lengths and self.params is None):
            words = " and ".join(f"--{name} {value}" for name, value in lengths.items()) or "none"
            raise UsageError(f"run must have a length; got {words}. Give one of --minutes, --steps and --tokens.")
        for name in ("minutes", "steps"):
            if given[name] is not None and not 0 < given[name] < math.inf:
                raise UsageError(f"--{name} must be a number above 0; got {given[name]}. Try 10.")

    def dial(self) -> "Dial":
        """Return what the model is to follow from."""
        from gemsmith.recipes.dial import Dial

        return Dial(_count(self.params, "--params"), _count(self.tokens, "--tokens"))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ComputeFlags:
    """How to compute.

    Attributes:
        processes: Processes that share out each batch; better than threads where others use the same cores.
        compile: Fuse with torch.compile, which needs a C++ compiler; done where there are no compiled kernels.
        recompute: Compute blocks twice instead of keeping their activations: less memory, a third more time.
        micro_batch: Most tokens of a step that are in memory at one time, such as 4096; the result stays the same.
        data_workers: Threads that make batches ahead of need.
    """

    processes: int = 1
    compile: Annotated[bool | None, Parameter(negative="--no-compile")] = None
    recompute: bool = False
    micro_batch: str | None = None
    data_workers: int = 1


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WatchFlags:
    """What is seen of the run, and saved.

    Attributes:
        probes: How often held-out texts are measured and samples written, evenly over the run; 0 for never.
        save_every: Save at every multiple of so many steps, beside every five minutes.
    """

    probes: int = 10
    save_every: int | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InsteadFlags:
    """What to do instead of training.

    Attributes:
        plan: Show every number that follows from --params and --tokens, with its source.
        prove_resume: Kill short runs of the recipe at twenty points and show that none of them lost anything.
    """

    plan: bool = False
    prove_resume: bool = False


def pretrain(
    recipe: Path | None = None,
    /,
    *,
    data: Path | None = None,
    out: Path | None = None,
    length: LengthFlags = LengthFlags(),
    compute: ComputeFlags = ComputeFlags(),
    watch: WatchFlags = WatchFlags(),
    instead: InsteadFlags = InsteadFlags(),
) -> int:
    """Train a model from a recipe; called again with the same run folder, it goes on. The model folder goes to stdout.

    Args:
        recipe: A TOML file, such as recipes/pebble.toml.
        data: The folder the recipe's paths start from, or one that data build wrote; the recipe's own when left out.
        out: The run folder: vocabulary, shards, log, checkpoints and, at the end, the model.
    """
    if instead.plan:
        from gemsmith.cli.plan import show_plan

        return show_plan(recipe, length.dial())
    if recipe is None:
        raise UsageError("recipe must be a file; got none. Name one, such as recipes/pebble.toml.")
    data = recipe.parent if data is None else data
    if instead.prove_resume:
        return _prove(recipe, data, dial=length.dial(), compute=choose_compute(compute))
    if out is None:
        raise UsageError("--out must name the run folder; got none. Choose a new one, or one to go on with.")
    length.check()
    folder = _train(recipe, data, out, length=length, compute=choose_compute(compute), watch=watch)
    say(f'gemsmith: trained. Try: gemsmith generate "Once upon a time" --model {folder}')
    write(str(folder))
    return 0


def choose_compute(flags: ComputeFlags) -> "Compute":
    """Return the fastest way to train that this machine has, and say what is missing for a faster one.

    Raises:
        UsageError: --compile is asked for where it cannot be.
    """
    import torch

    from gemsmith.infer.device import has_fast_bfloat16
    from gemsmith.kernels.native import library
    from gemsmith.recipes.options import Compute

    has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    if flags.compile and not has_compiler:
        raise UsageError("--compile must have a C++ compiler; got none on the path. Install one, or leave it out.")
    is_plain = library() is None
    if is_plain and not has_compiler:
        say("gemsmith: no C++ compiler was found, so nothing is fused; with one, training is several times faster.")
    return Compute(
        dtype=torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32,
        is_compiled=(is_plain and has_compiler) if flags.compile is None else flags.compile,
        n_processes=flags.processes,
        is_recomputed=flags.recompute,
        micro_batch_tokens=_count(flags.micro_batch, "--micro-batch"),
        n_data_workers=flags.data_workers,
    )


def _train(recipe: Path, data: Path, out: Path, *, length: LengthFlags, compute: "Compute", watch: WatchFlags) -> Path:
    from gemsmith.cli.progress import bars
    from gemsmith.cli.watch import watchers
    from gemsmith.recipes.options import Options
    from gemsmith.recipes.pretrain import run

    machine = _machine()
    say(f"gemsmith: training; {out / 'log.jsonl'} tells how it goes. Ctrl-C saves and stops, the same call goes on.")
    with ExitStack() as closing:
        bar = closing.enter_context(bars()) if sys.stderr.isatty() else None
        options = Options(
            dial=length.dial(),
            save_every_steps=watch.save_every,
            matrix_rate=_matrix_rate(out, compute, machine),
            machine=machine,
            watchers=partial(watchers, n_probes=watch.probes, bar=bar, closing=closing),
            start=length.start,
        )
        closing.callback(_plot, out)
        return run(
            recipe,
            data_dir=data,
            out=out,
            minutes=length.minutes,
            steps=length.steps,
            compute=compute,
            options=options,
        )


def _machine() -> dict[str, Any]:
    cpu = read_cpu()
    return {"cpu": asdict(cpu), "memory": total_memory()}


def _matrix_rate(out: Path, compute: "Compute", machine: dict[str, Any]) -> float:
    """Return the rate an earlier start of the run measured on this machine, or measure it."""
    from gemsmith.recipes.run_folder import read_facts
    from gemsmith.train.cost import measure_matrix_rate

    for session in read_facts(out).get("sessions", ()):
        is_same = session.get("cpu") == machine["cpu"] and session["compute"]["dtype"] == str(compute.dtype)
        if is_same and session.get("matrix_rate"):
            return session["matrix_rate"]
    return measure_matrix_rate(compute.dtype)


def _plot(out: Path) -> None:
    """Draw the run, finished or not; what is missing for it is said."""
    from gemsmith.errors import DataError
    from gemsmith.recipes.plot import plot

    try:
        plot([out], out / "plot.png")
    except DataError as error:
        say(f"gemsmith: no plot.png: {error}")


def _prove(recipe: Path, data: Path, *, dial: "Dial", compute: "Compute") -> int:
    from gemsmith.recipes.prove import prove_resume

    proof = prove_resume(recipe, data_dir=data, dial=dial, compute=compute, tell=lambda line: say(f"gemsmith: {line}"))
    write(str(proof))
    return 0 if proof.is_bit_equal else 1


def _count(text: str | None, name: str) -> int | None:
    """Read a count such as 300, 64K, 12.5M or 2B.

    Raises:
        UsageError: It is none, or not a whole number above 0.
    """
    if text is None:
        return None
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    try:
        value = float(text[: len(text) - len(unit)]) * _UNITS[unit]
    except (KeyError, ValueError):
        value = math.nan
    if not 1 <= value < math.inf:
        raise UsageError(f"{name} must be a count such as 300, 64K, 12.5M or 2B; got {text!r}. Correct it.")
    return round(value)
