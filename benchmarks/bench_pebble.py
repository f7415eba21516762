"""Does the model in the box feel instant? Physics: 24 MB of weights a token would allow a thousand tokens/s.

Runs the command a newcomer runs, in a process of its own: first token counted from the start of
Python, decoding from the rate the command reports.

    python benchmarks/bench_pebble.py
"""

import json
import subprocess
import sys

from common import Result, finish, median, read_limit, show

N_NEW, N_RUNS = 256, 5
MAX_FIRST_S, MIN_RATE = 4.0, 2000.0
WRITE = ["generate", "Once upon a time", "--max-new-tokens", str(N_NEW), "--json", "--seed"]


def main() -> None:
    firsts = write("pebble_decode", n_bytes=2)
    first = median(firsts)
    show({"pebble, first token": firsts}, "s")
    finish(
        Result("pebble_first_token", first, None, None, MAX_FIRST_S, first, "s since start", first <= MAX_FIRST_S),
        config="pebble, gemsmith generate",
    )
    write("pebble_decode_int8", "--bits", "8", n_bytes=1)


def write(name: str, *flags: str, n_bytes: int) -> list[float]:
    """Measure tokens/s, keep the row, and return the seconds to the first token of each run.

    Args:
        n_bytes: Of a weight.
    """
    rows = []
    for seed in range(N_RUNS + 1):
        command = [sys.executable, "-m", "gemsmith", *WRITE, str(seed), *flags]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    rows = rows[1:]  # the first run reads libraries from disk
    rates = [row["tokens_per_s"] for row in rows]
    show({name: rates}, "tokens/s")
    limit, rate = read_limit() / (n_bytes * 10.5e6 / 1e9), median(rates)
    finish(Result(name, rate, None, limit, MIN_RATE, rate, "tokens/s", rate >= MIN_RATE), config=f"{N_NEW} tokens")
    return [row["first_token_since_start_s"] for row in rows]


if __name__ == "__main__":
    main()
