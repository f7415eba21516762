"""`gemsmith bench`: how fast a model is on this machine, and how much of the machine that uses."""

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from gemsmith.cli.console import UsageError, say, table, write, write_json
from gemsmith.cli.flags import AsJson, PlaceFlags
from gemsmith.cli.machine import peak_rss_bytes, read_cpu
from gemsmith.errors import ConfigError

if TYPE_CHECKING:
    from gemsmith.evaluate.limits import Limits
    from gemsmith.evaluate.rivals import Rival
    from gemsmith.evaluate.speed import Plan, Speed
    from gemsmith.infer.lm import LM

OURS = "gemsmith"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """What is measured, and how often.

    Attributes:
        prefill: Length of a prompt to read, in tokens; may be repeated. 128 and 512 when left out.
        context: Length of a prompt to write on from; may be repeated, for a long one too. 128 when left out.
        new_tokens: Tokens written after each.
        runs: Rounds that count, after one of warming up.
    """

    prefill: tuple[int, ...] = (128, 512)
    context: tuple[int, ...] = (128,)
    new_tokens: int = 32
    runs: int = 5


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RivalFlags:
    """Programs to take turns with.

    Attributes:
        against: A program that is installed and runs the same model; may be repeated.
        against_model: The file or folder that one program loads; otherwise the model itself, for llama.cpp written
            as GGUF.
    """

    against: tuple[Literal["llama.cpp", "transformers", "openvino"], ...] = ()
    against_model: Path | None = None


@dataclass(frozen=True)
class Report:
    """All that was measured; bytes, seconds, tokens per second.

    Attributes:
        load_s: Until the model was open.
        first_token_s: Until its first token, from the same moment.
        weights, cache: Bytes of all weights a token reads, and of the cache of the longest prompt.
        bits: For each weight in each program, scales and all; None where a program does not tell.
        shares: Of the machine's limit, for each of our speeds; None where there is no limit to compare with.
    """

    model: str
    dtype: str
    device: str
    processor: str
    kernels: str
    threads: int
    load_s: float
    first_token_s: float
    peak_rss: int
    weights: int
    cache: int
    bits: dict[str, float | None]
    limits: "Limits"
    speeds: list["Speed"]
    shares: list[float | None]


def bench(
    model: str = "pebble",
    /,
    *,
    plan: PlanFlags = PlanFlags(),
    rivals: RivalFlags = RivalFlags(),
    place: PlaceFlags = PlaceFlags(),  # noqa: B008 (frozen)
    threads: int | None = None,
    plot: Annotated[Path | None, Parameter(help="Draw the speeds into this PNG.")] = None,
    as_json: AsJson = False,
) -> int:
    """Measure reading, writing, loading and memory of a model, beside what this machine does at most.

    Args:
        model: The box ("pebble"), a folder, a GGUF file, or a pulled name.
        threads: Threads to compute with; torch's own number when left out.
    """
    import torch

    from gemsmith.infer import device

    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1; got {threads}. Leave it out for torch's own number.")
    if rivals.against_model is not None and len(set(rivals.against)) != 1:
        raise UsageError(
            f"--against-model must come with one --against, whose model it is; got {str(rivals.against_model)!r} and "
            f"{', '.join(rivals.against) or 'none'}. Name one program."
        )
    if plot is not None:
        from gemsmith.recipes.plot import check_place

        check_place(plot)
    with device.threads(threads or torch.get_num_threads()):
        report = run(model, plan, rivals, place)
    if as_json:
        write_json(as_fields(report))
    else:
        write("\n\n".join(table(rows) for rows in tables(report)))
    if plot is not None:
        from gemsmith.evaluate.speed_plot import draw

        say(f"gemsmith: drawn in {draw(report.speeds, plot, title=report.model)}")
    return 0


def run(model: str, flags: PlanFlags, rivals: RivalFlags, place: PlaceFlags) -> Report:
    """Load a model and measure it."""
    import torch

    from gemsmith.evaluate.limits import measure_limits, weight_bytes
    from gemsmith.evaluate.speed import Plan, gemsmith_subject, measure
    from gemsmith.kernels import native
    from gemsmith.model.cache import cache_bytes

    plan = Plan(flags.prefill, flags.context, flags.new_tokens, flags.runs)
    start = time.perf_counter()
    lm = place.load(model)
    loaded = time.perf_counter()
    plan.fitting(lm.config.max_seq_len)
    ours = gemsmith_subject(lm)
    ours([lm.tokenizer.bos_id], 0)
    first = time.perf_counter()
    ours([lm.tokenizer.bos_id] * max(plan.lengths), plan.n_new)
    peak, longest = peak_rss_bytes(), max(plan.lengths) + plan.n_new + 1
    with ExitStack() as stack:
        others = opened(stack, lm, model, rivals, max_tokens=longest)
        subjects = {OURS: ours, **{name: other.turn for name, other in others.items()}}
        speeds = measure(subjects, plan, vocab_size=lm.tokenizer.vocab_size)
    weights = weight_bytes(lm.network)
    n_bytes = {OURS: weights, **{name: other.n_bytes for name, other in others.items()}}
    limits = measure_limits(has_int8_tiles=has_int8_tiles())
    return Report(
        model=model,
        dtype=str(lm.dtype).removeprefix("torch."),
        device=str(lm.device),
        processor=read_cpu().model,
        kernels=native.isa(),
        threads=torch.get_num_threads(),
        load_s=loaded - start,
        first_token_s=first - start,
        peak_rss=peak,
        weights=weights,
        cache=cache_bytes(lm.config, longest, dtype=lm.cache_dtype or lm.dtype),
        bits={name: None if n is None else 8 * n / lm.config.n_params for name, n in n_bytes.items()},
        limits=limits,
        speeds=speeds,
        shares=[share(speed, lm, limits, plan) if speed.subject == OURS else None for speed in speeds],
    )


def opened(stack: ExitStack, lm: "LM", model: str, flags: RivalFlags, *, max_tokens: int) -> dict[str, "Rival"]:
    """Return the other programs with the model loaded; `stack` closes them.

    Raises:
        ConfigError: One is not installed or cannot load the model, or ours is not on the CPU.
    """
    if not flags.against:
        return {}
    if lm.device.type != "cpu":
        raise ConfigError(
            f"against must be left out for a model on {lm.device.type!r}; got {', '.join(flags.against)}, which "
            "compute on the CPU here. Add --device cpu."
        )
    from gemsmith.evaluate.rivals import rival
    from gemsmith.weights.catalog import find_model

    place = find_model(model)
    return {
        name: stack.enter_context(rival(name, lm, place, model=flags.against_model, max_tokens=max_tokens))
        for name in flags.against
    }


def share(speed: "Speed", lm: "LM", limits: "Limits", plan: "Plan") -> float | None:
    """Return how much of the machine's limit a speed of ours uses: of reading memory, or of products.

    A model that fits the caches is read faster than memory, and its share of that may exceed 1.
    """
    from gemsmith.evaluate.limits import cache_read_bytes, prefill_products, product_kind, weight_bytes

    if lm.device.type != "cpu":
        return None
    if speed.phase == "prefill":
        limit, per_token = limits.rate(product_kind(lm.network)), prefill_products(lm.config, speed.n_tokens)
    else:
        dtype, middle = lm.cache_dtype or lm.dtype, speed.n_tokens + plan.n_new // 2
        limit, per_token = limits.read, weight_bytes(lm.network) + cache_read_bytes(lm.config, middle, dtype)
    return None if limit is None else per_token * speed.median / limit


def has_int8_tiles() -> bool:
    """Tell whether the processor names products of int8 by tiles among its features."""
    try:
        return " amx_int8" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def as_fields(report: Report) -> dict[str, object]:
    """Return what --json prints."""
    speeds = [
        {**asdict(speed), "median": speed.median, "low": min(speed.rates), "high": max(speed.rates), "share": found}
        for speed, found in zip(report.speeds, report.shares, strict=True)
    ]
    return {**asdict(report), "speeds": speeds, "shares": None}


def tables(report: Report) -> list[list[tuple[str, ...]]]:
    """Return what is printed otherwise: the speeds, then the model, then the machine."""
    speeds = [("", "tokens", "program", "tokens/s", "lowest", "highest", "of the limit")]
    for speed, found in zip(report.speeds, report.shares, strict=True):
        rates = (f"{speed.median:,.1f}", f"{min(speed.rates):,.1f}", f"{max(speed.rates):,.1f}")
        speeds.append(
            (speed.phase, str(speed.n_tokens), speed.subject, *rates, "" if found is None else f"{found:.0%}")
        )
    about = [
        ("model", f"{report.model}, computed in {report.dtype} on {report.device}"),
        ("open", f"{report.load_s:.2f} s, first token after {report.first_token_s:.2f} s"),
        (
            "memory",
            f"{_mb(report.peak_rss)} resident at most, weights {_mb(report.weights)}, cache {_mb(report.cache)}",
        ),
    ]
    bits = [f"{name} {'unknown' if n is None else f'{n:.2f}'}" for name, n in report.bits.items()]
    about.append(("bits of a weight", ", ".join(bits)))
    machine = [("machine", f"{report.processor}, {report.threads} threads, kernels {report.kernels}")]
    if report.limits.read is not None:
        machine.append(("reads", f"{report.limits.read / 1e9:.1f} GB/s of memory"))
    machine += [
        (kind, f"{rate / 1e9:,.0f} G multiply-adds/s in registers")
        for kind, rate in report.limits.products.items()
        if rate is not None
    ]
    return [speeds, about, machine]


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
