"""What does choosing one token cost beside the plain path? Physics: the scores are read once, 4 bytes a piece.

One row, one thread, as one stream decodes: top_k 50, top_p 0.95, repetition penalty 1.1 over a prompt of 200
tokens; below it other settings, which find other ways through the vocabulary.

    python benchmarks/bench_sample.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from common import Result, finish, read_limit, show, take_turns

from gemsmith.infer.noise import completion_streams
from gemsmith.infer.penalties import History
from gemsmith.infer.sample import Picker, Sampling, plain_pick

# Pieces -> microseconds at the first setting.
TARGETS = {8192: 15.0, 256_000: 150.0}
SETTINGS = {
    "top_k 50, top_p 0.95, repetition 1.1": Sampling(top_k=50, top_p=0.95, repetition_penalty=1.1),
    "greedy": Sampling(temperature=0.0),
    "no limit": Sampling(),
    "top_p 0.95": Sampling(top_p=0.95),
    "min_p 0.05": Sampling(min_p=0.05),
}
N_ROWS, N_PROMPT = 8, 200


def microseconds(call: Callable[[int], object], n_calls: int) -> float:
    """Return the median time of one call; row after row, so that no branch is learned by heart."""
    times = []
    for i in range(n_calls):
        start = time.perf_counter()
        call(i % N_ROWS)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def measure(vocab_size: int, sampling: Sampling) -> dict[str, list[float]]:
    """Return medians of several rounds of the kernel and of the plain path."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N_ROWS, vocab_size + 64, generator=generator) * 3  # a head has more rows than pieces
    history = History([torch.randint(0, vocab_size, (N_PROMPT,), generator=generator).tolist()], vocab_size)
    picker, streams, positions = Picker(sampling), completion_streams(0, torch.arange(1)), torch.tensor([N_PROMPT])

    def kernel(row: int) -> object:
        scores = logits[row : row + 1, :vocab_size]
        return picker.pick(scores, streams=streams, positions=positions, history=history)

    def plain(row: int) -> object:
        scores = logits[row : row + 1, :vocab_size]
        return plain_pick(scores, sampling, streams=streams, positions=positions, history=history)

    n_calls = 200 if vocab_size < 100_000 else 30
    return take_turns(
        {"kernel": lambda: microseconds(kernel, n_calls), "plain": lambda: microseconds(plain, n_calls // 5)}
    )


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    rate = read_limit()
    for vocab_size, target in TARGETS.items():
        rows = {name: measure(vocab_size, sampling) for name, sampling in SETTINGS.items()}
        for name, values in rows.items():
            print(f"{vocab_size} pieces, {name}")
            show(values, "us")
        first, *others = ({who: statistics.median(x) for who, x in values.items()} for values in rows.values())
        note = "; ".join(f"{name} {x['kernel']:.0f}" for name, x in zip(list(SETTINGS)[1:], others, strict=True))
        result = Result(
            f"sample_{vocab_size}", first["kernel"], first["plain"], vocab_size * 4 / rate / 1e3, target,
            first["kernel"], "us per token", first["kernel"] <= target, note=note,
        )  # fmt: skip
        finish(result, config=f"{vocab_size} pieces, {next(iter(SETTINGS))}, one thread")


if __name__ == "__main__":
    main()
