"""What does a trained token cost as rows get longer? Physics: products grow with the mean number of keys.

    python benchmarks/bench_train_length.py

The 36M shape, 2,048 tokens a step or one row where rows are longer, 512 to 16,384 tokens a row. Peaks
are of the whole process; a contender that runs out of memory ends its curve.
"""

import json
import statistics

import matplotlib as mpl
from common import RESULTS, Result, finish
from contenders import SHAPES, Measured, measure

LENGTHS = (512, 2048, 4096, 16384)
CONTENDERS = ("gemsmith", "transformers")
N_STEPS = 3
TARGET = 1.0  # ours must not need more memory at 16k than the peer needs at its longest


def plot(table: dict[str, dict[int, tuple[float, float]]]) -> None:
    """Draw milliseconds per token and peak memory against the length of a row."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for contender, row in table.items():
        lengths = list(row)
        axes[0].plot(lengths, [1000 / row[n][0] for n in lengths], marker="o", label=contender)
        axes[1].plot(lengths, [row[n][1] for n in lengths], marker="o", label=contender)
    for axis, label in zip(axes, ("milliseconds per token", "peak memory of the process, GB"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens of a row")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "train_length.png", dpi=110)


def main() -> None:
    table: dict[str, dict[int, tuple[float, float]]] = {contender: {} for contender in CONTENDERS}
    ended: set[str] = set()
    for length in LENGTHS:
        for contender, row in table.items():
            if contender in ended:
                continue
            found: Measured | None = measure(contender, f"L{length}", n_steps=N_STEPS)
            if found is None:
                ended.add(contender)
            else:
                row[length] = (statistics.median(found.rates), found.peak_gb)
                print(f"{contender:20s} {length:6d}  {row[length][0]:8.0f} tokens/s  peak {row[length][1]:6.2f} GB")
    plot(table)
    ours, peer = table["gemsmith"], table["transformers"]
    longest = max(peer)
    note = json.dumps(table)
    share = ours[max(ours)][1] / peer[longest][1]
    what = f"peak GB, ours at {max(ours)} tokens a row against transformers at {longest}"
    finish(
        Result("train_length", ours[max(ours)][1], peer[longest][1], None, TARGET, share, what, share <= TARGET, note),
        config=f"{SHAPES['L512']}, rows of {LENGTHS}",
    )


if __name__ == "__main__":
    main()
