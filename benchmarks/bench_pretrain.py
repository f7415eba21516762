"""Which loop foretells held-out texts better after the same time: ours, or a plain one over transformers?

Two processes of one thread side by side, each on a core of its own, the same shards in the same order,
initial weights, optimizers, rates and minutes in steps (held-out texts are measured outside of them):

    OMP_NUM_THREADS=1 taskset -c 0 gemsmith pretrain recipes/pebble.toml --data DATASET --out OURS --minutes 30 &
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/pretrain_peer.py recipes/pebble.toml --data DATASET --out PEER \\
        --minutes 30
    python benchmarks/bench_pretrain.py OURS PEER

With the same steps both would learn the same; physics is the arithmetic each gets done in its minutes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from common import Result, finish

TARGET = 0.97  # of the peer's bits per byte: "clearly lower"


def last_rows(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last row about steps and the last about held-out texts."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return next(r for r in reversed(rows) if "nll" in r), next(r for r in reversed(rows) if "bpb" in r)


def main(ours: Path, peer: Path) -> None:
    found = {run.name: last_rows(run) for run in (ours, peer)}
    print(f"{'source':22s}" + "".join(f"{name:>16s}" for name in found))
    for source in found[ours.name][1]["held_out"]:
        print(f"{source:22s}" + "".join(f"{row['held_out'][source]:16.3f}" for _, row in found.values()))
    for name, (_, row) in found.items():
        speed = row["n_tokens"] / row["seconds"]
        print(f"{name}: {row['bpb']:.4f} bits per byte, {row['n_tokens']:,} tokens, {speed:,.0f} tokens/s")
    mine, theirs = found[ours.name][1], found[peer.name][1]
    ratio = mine["bpb"] / theirs["bpb"]
    note = f"{mine['n_tokens']} and {theirs['n_tokens']} tokens in {mine['seconds']:.0f} and {theirs['seconds']:.0f} s"
    finish(
        Result("pretrain", mine["bpb"], theirs["bpb"], None, TARGET, ratio, "bits per byte", ratio <= TARGET, note),
        config="recipes/pebble.toml, 10.5M parameters, one thread each",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
