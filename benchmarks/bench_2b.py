"""How do we compare with others at the Gemma 2 2B shape, side by side? Physics: writing reads every weight once.

    python benchmarks/bench_2b.py decode  --bits 4|8|16 [--context 8000]
    python benchmarks/bench_2b.py prefill --bits 4|16 [--length 4096]
    python benchmarks/bench_2b.py memory  --bits 4
    python benchmarks/bench_2b.py start   --bits 4

Models come from files_2b.py: --models, or GEMSMITH_BENCH_MODELS. Contestants take turns, round by round; each
is a process of its own with two threads, the same ids and the same settings of the C allocator. --only NAME,NAME
keeps some of them and brings in torchao, which compiles for minutes; a row is kept for `make targets` only
where all its parts were measured.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from common import Result, finish, int8_limit, read_limit, show, take_turns
from contestants import (
    BY_BITS,
    INT8_CACHE,
    OURS,
    ROW_SCALES,
    Contestant,
    first_token_of_command,
    present,
    running,
    start,
)
from cyclopts import App, Parameter

from gemsmith.config import preset
from gemsmith.model.cache import cache_bytes

SHAPE = "gemma-2-2b"
SHORT, N_NEW = 64, 16
# Bits a weight costs with its scales, head included; dense ones have none.
BITS = {4: 4.5, 8: 8.5, 16: 16.0}
WORDS = {4: "int4", 8: "int8", 16: "bf16"}
LEAST, PEERS = 1.5, {4: "the best peer", 8: "llama.cpp's Q8_0"}
BF16_PREFILL = {512: 1.4, 4096: 1.6}
TRANSFORMERS = "transformers"
Bits = Literal[4, 8, 16]
Models = Annotated[Path, Parameter(env_var="GEMSMITH_BENCH_MODELS")]
app = App(help_flags=["--help"])


@app.command
def decode(models: Models, bits: Bits = 4, context: int = SHORT, only: str | None = None, n_runs: int = 5) -> None:
    """Compare tokens per second of one stream after a context."""
    if context > SHORT:
        return _decode_long(models, context, only, n_runs)
    with running(present(BY_BITS[bits], models, only=only), models) as processes:
        for process in processes.values():
            process.ask("fill", context)
        values = take_turns(
            {name: lambda p=process: p.rate("decode", N_NEW) for name, process in processes.items()}, n_runs=n_runs
        )
        facts = {name: process.facts["facts"] for name, process in processes.items()}
    show(values, "tokens/s")
    ours, peer, rows = _best(values, facts)
    limit = read_limit() / _weights_gb(bits)
    print(f"read limit {limit:.2f} tokens/s at {BITS[bits]} bits")
    config = f"{SHAPE}, random weights, batch 1, {N_NEW} tokens after {context}"
    if ours is None or peer is None:
        return None
    share = ours / limit
    if bits == 16:
        _against_transformers("decode", values, 1.15, config, rows)
        result = Result("decode_bf16", ours, peer, limit, 0.8, share, "share of the read limit", share >= 0.8)
        return finish(result, config=config, rows=rows)
    for contestant in (c for c in BY_BITS[bits] if c.script == "ours" and c.name in values):
        ours, best = statistics.median(values[contestant.name]), peer
        if bits == 8:
            best = max(statistics.median(row) for name, row in values.items() if name.startswith("llama.cpp"))
        name, ratio = f"decode_{WORDS[bits]}", ours / best
        note = f"{ours / limit:.0%} of the read limit; {ours / peer:.2f} x the best peer at any bits"
        if contestant is ROW_SCALES:
            name, note = (
                f"{name}_row",
                f"8.0 bits a weight beside Q8_0's 8.5; {ours / peer:.2f} x the best peer at any bits",
            )
        result = Result(name, ours, best, limit, LEAST, ratio, f"ratio to {PEERS[bits]}", ratio >= LEAST, note)
        finish(result, config=config, rows=rows)
    return None


def _decode_long(models: Path, context: int, only: str | None, n_runs: int) -> None:
    """Compare decoding after a long context with decoding after a short one."""
    ours, *peers = BY_BITS[4]
    short = Contestant(f"{ours.name} after {SHORT}", ours.script, ours.model)
    contestants = present((short, ours, INT8_CACHE, *peers), models, only=only)
    with running(contestants, models) as processes:
        for name, process in processes.items():
            seconds = process.ask("fill", SHORT if name == short.name else context)["seconds"]
            print(f"{name}: context made in {seconds:.0f} s", flush=True)
        values = take_turns(
            {name: lambda p=process: p.rate("decode", N_NEW) for name, process in processes.items()}, n_runs=n_runs
        )
        facts = {name: process.facts["facts"] for name, process in processes.items()}
    show(values, "tokens/s")
    rows = _rows(values, facts)
    _, peer, _ = _best(values, facts)
    for name, itemsize in ((ours.name, 2), (INT8_CACHE.name, 1)):
        if not {name, short.name} <= set(values):
            continue
        rate, before = statistics.median(values[name]), statistics.median(values[short.name])
        implied, lost = _implied(context, itemsize), 1 - rate / before
        print(f"{name}: {lost:.1%} slower after {context} than after {SHORT}; its cache's bytes imply {implied:.1%}")
        result = Result(
            f"decode_8k{'_int8' if itemsize == 1 else ''}", rate, peer, before * (1 - implied), implied + 0.05, lost,
            "share of speed lost to the context", lost <= implied + 0.05, f"{implied:.1%} implied by bytes",
        )  # fmt: skip
        finish(result, config=f"{SHAPE}, int4, batch 1, {N_NEW} tokens after {context}", rows=rows)


@app.command
def prefill(
    models: Models, bits: Bits = 4, length: int = 512, only: str | None = None, n_runs: int = 3, n_warm: int = 1
) -> None:
    """Compare tokens per second of reading a prompt, with transformers in bf16 beside those of few bits."""
    wanted = [*BY_BITS[bits], *(c for c in BY_BITS[16] if c.name.startswith(TRANSFORMERS) and bits != 16)]
    with running(present(wanted, models, only=only), models) as processes:
        values = take_turns(
            {name: lambda p=process: p.rate("prefill", length) for name, process in processes.items()},
            n_runs=n_runs, n_warm=n_warm,
        )  # fmt: skip
        facts = {name: process.facts["facts"] for name, process in processes.items()}
    show(values, "tokens/s")
    ours, peer, rows = _best(values, facts)
    config = f"{SHAPE}, random weights, {length} tokens, batch 1"
    if ours is None or peer is None:
        return
    if bits == 16:
        _against_transformers(f"prefill_{length}", values, BF16_PREFILL[length], config, rows)
        return
    name, ratio = f"prefill_{WORDS[bits]}_{length}", ours / peer
    limit = int8_limit() * 1e9 / _flops_per_token()
    note = f"{ours / limit:.0%} of the rate of 8-bit products, attention left out"
    result = Result(name, ours, peer, limit, 2.0, ratio, "ratio to the best peer at any bits", ratio >= 2.0, note)
    print(note)
    finish(result, config=config, rows=rows)


def _against_transformers(
    name: str, values: dict[str, list[float]], least: float, config: str, rows: dict[str, Any]
) -> None:
    """Keep the older promise: so many times transformers, both in bfloat16."""
    theirs = next((row for other, row in values.items() if other.startswith(TRANSFORMERS)), None)
    if theirs is None:
        return
    ours, peer = _best(values, {})[0], statistics.median(theirs)
    assert ours is not None
    ratio = ours / peer
    result = Result(name, ours, peer, None, least, ratio, "ratio of tokens/s to transformers", ratio >= least)
    finish(result, config=config, rows=rows)


@app.command
def memory(models: Models, bits: Bits = 4, only: str | None = None) -> None:
    """Compare resident memory after a prompt of 512 and 16 tokens more."""
    values: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    for contestant in _for_short_contexts(present(BY_BITS[bits], models, only=only)):
        with running([contestant], models, environment={}) as processes:
            for name, process in processes.items():
                process.ask("fill", 512)
                process.ask("decode", N_NEW)
                said = process.ask("memory")
                values[name], facts[name] = [said["now"] / 1e9], {**process.facts["facts"], **said}
                print(name, {key: f"{value / 1e9:.2f} GB" for key, value in said.items()}, flush=True)
    llama = next((name for name in values if name.startswith("llama")), None)
    mine = next((name for name in values if name.startswith(OURS)), None)
    if llama and mine:
        ours, peer = values[mine][0], values[llama][0]
        unit, is_met = "ratio of resident GB to llama.cpp", ours <= 1.1 * peer
        note = f"at most {facts[mine]['peak'] / 1e9:.2f} GB, llama.cpp {facts[llama]['peak'] / 1e9:.2f} GB"
        name = f"memory_{WORDS[bits]}"
        result = Result(name, ours, peer, _weights_gb(bits), 1.1, ours / peer, unit, is_met, note)
        finish(result, config=f"{SHAPE}, after 512 + {N_NEW} tokens", rows=_rows(values, facts))


@app.command(name="start")
def first_token(models: Models, bits: Bits = 4, only: str | None = None, n_runs: int = 5) -> None:
    """Compare the time from starting a process to its first token, files in the page cache.

    Ours is the command users type; the others are what they ship, a library in Python.
    """
    contestants = _for_short_contexts(present(BY_BITS[bits], models, only=only))
    facts: dict[str, Any] = {}

    def once(contestant: Contestant) -> float:
        if contestant.script == "ours":
            return first_token_of_command(models / contestant.model)
        process = start(contestant, models, environment={})
        try:
            facts[contestant.name] = process.hear()["facts"]
            process.ask("prefill", 8)
            return time.perf_counter() - process.started
        finally:
            process.close()

    values = take_turns({c.name: lambda c=c: once(c) for c in contestants}, n_runs=n_runs)
    show(values, "s")
    llama = next((row for name, row in values.items() if name.startswith("llama")), None)
    mine = next((row for name, row in values.items() if name.startswith(OURS)), None)
    if llama and mine:
        ours, peer = statistics.median(mine), statistics.median(llama)
        result = Result(
            f"start_{WORDS[bits]}", ours, peer, None, 1.0, ours / peer, "ratio of seconds to llama.cpp", ours <= peer
        )
        finish(
            result, config=f"{SHAPE}, process start to first token, 8 ids, files in memory", rows=_rows(values, facts)
        )


def _for_short_contexts(contestants: list[Contestant]) -> list[Contestant]:
    """Give llama.cpp, which takes room for its longest context at once, a short one: the others grow as they go."""
    return [replace(c, options=("n_ctx=1024",)) if c.script == "llama" else c for c in contestants]


def _weights_gb(bits: int) -> float:
    return preset(SHAPE).n_params * BITS[bits] / 8e9


def _flops_per_token() -> float:
    """Return what the matrices of all layers need for a token of a prompt; the head serves the last one only."""
    config = preset(SHAPE)
    return 2.0 * (config.n_params - config.vocab_size * config.d_model)


def _implied(context: int, itemsize: int) -> float:
    """Return the share of a token's bytes that are keys and values of the context, at int4."""
    config = preset(SHAPE)
    dtype = {1: torch.int8, 2: torch.bfloat16}[itemsize]
    held = cache_bytes(config, context, slack=1, dtype=dtype) / 1e9
    return held / (held + _weights_gb(4))


def _rows(values: dict[str, list[float]], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"median": statistics.median(row), "low": min(row), "high": max(row), "facts": facts.get(name, {})}
        for name, row in values.items()
    }


def _best(values: dict[str, list[float]], facts: dict[str, Any]) -> tuple[float | None, float | None, dict[str, Any]]:
    """Return the best median of ours, of the others, and every row."""
    medians = {name: statistics.median(row) for name, row in values.items()}
    ours = max((value for name, value in medians.items() if name.startswith(OURS)), default=None)
    peer = max((value for name, value in medians.items() if not name.startswith(OURS)), default=None)
    return ours, peer, _rows(values, facts)


if __name__ == "__main__":
    app()
