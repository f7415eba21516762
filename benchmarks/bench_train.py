"""How fast does a network train, and in how much memory? Physics: the matrix products of a step.

    python benchmarks/bench_train.py A|B|C [ROUNDS]

Processes take turns: ours, transformers with two settings of the allocator, transformers compiled.
A token of training costs about six products per weight; the limit is this arithmetic at the rate of
torch's best matrix product.
"""

import statistics
import sys

import torch
from common import Result, finish, matrix_limit
from contenders import N_THREADS, SHAPES, Measured, measure

PEERS = ("transformers", "transformers-kept", "transformers-compiled")
# At C the peer that keeps its memory runs out of it, and compiling takes more minutes than all else together.
PEERS_OF = {"A": PEERS, "B": PEERS, "C": PEERS[:1]}
TARGETS = {"A": 2.4, "B": 1.7, "C": 1.6}
RATE_TARGET = 4500.0
MEMORY_TARGET = 0.5
N_STEPS = {"A": 6, "B": 6, "C": 4}


def main(name: str, n_rounds: int) -> None:
    torch.set_num_threads(N_THREADS)
    shape = SHAPES[name]
    runs: dict[str, list[Measured]] = {contender: [] for contender in ("gemsmith", *PEERS_OF[name])}
    limits = []
    for _ in range(n_rounds):
        limits.append(matrix_limit() * 1e9 / shape.flops_per_token())
        for contender, measured in runs.items():
            # The compiled peer is measured once where a step takes minutes to compile and half a minute to run.
            if contender == "transformers-compiled" and measured:
                continue
            if (found := measure(contender, name, n_steps=N_STEPS[name])) is not None:
                measured.append(found)
    rates = {c: [rate for run in found for rate in run.rates] for c, found in runs.items() if found}
    peaks = {c: max(run.peak_gb for run in found) for c, found in runs.items() if found}
    for contender, values in rates.items():
        losses = ", ".join(f"{loss:.3f}" for loss in runs[contender][0].losses)
        print(
            f"{contender:24s} median {statistics.median(values):8.1f} tokens/s ({min(values):.0f}-{max(values):.0f}), "
            f"{len(values)} steps; peak {peaks[contender]:.2f} GB; losses {losses}"
        )
    limit = statistics.median(limits)
    print(f"{'limit of matrix products':24s} {limit:8.1f} tokens/s, {min(limits):.1f} to {max(limits):.1f}")
    ours = statistics.median(rates["gemsmith"])
    best = max((c for c in PEERS if c in rates), key=lambda c: statistics.median(rates[c]))
    peer = statistics.median(rates[best])
    config = f"shape {name}: {shape}, {shape.n_tokens} tokens a step, AdamW, bfloat16 on float32 weights"
    note = f"best peer: {best}; share of the limit {ours / limit:.2f}; peaks in GB {peaks}"
    ratio, target = ours / peer, TARGETS[name]
    finish(
        Result(f"train_{name.lower()}", ours, peer, limit, target, ratio, "tokens/s", ratio >= target, note),
        config=config,
    )
    if name == "A":
        finish(
            Result("train_a_rate", ours, peer, limit, RATE_TARGET, ours, "tokens/s", ours >= RATE_TARGET, note),
            config=config,
        )
    if name == "C":
        share = peaks["gemsmith"] / peaks[best]
        finish(
            Result(
                "train_c_memory",
                peaks["gemsmith"],
                peaks[best],
                None,
                MEMORY_TARGET,
                share,
                "GB",
                share <= MEMORY_TARGET,
                note,
            ),
            config=config,
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
