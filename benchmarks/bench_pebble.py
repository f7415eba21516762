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
MAX_FIRST_S, MIN_RATE = 4.0, 250.0
WRITE = ["generate", "Once upon a time", "--max-new-tokens", str(N_NEW), "--json", "--seed"]


def main() -> None:
    command = [sys.executable, "-m", "gemsmith", *WRITE]
    rows = []
    for seed in range(N_RUNS + 1):
        out = subprocess.run([*command, str(seed)], capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(out))
    rows = rows[1:]  # the first run reads libraries from disk
    rates, firsts = [r["tokens_per_s"] for r in rows], [r["first_token_since_start_s"] for r in rows]
    show({"pebble, decode": rates}, "tokens/s")
    show({"pebble, first token": firsts}, "s")
    limit = read_limit() / (2 * 10.5e6 / 1e9)
    finish(
        Result(
            "pebble_decode", median(rates), None, limit, MIN_RATE, median(rates), "tokens/s", median(rates) >= MIN_RATE
        ),
        config=f"pebble, {N_NEW} tokens",
    )
    first = median(firsts)
    finish(
        Result("pebble_first_token", first, None, None, MAX_FIRST_S, first, "s since start", first <= MAX_FIRST_S),
        config="pebble, gemsmith generate",
    )


if __name__ == "__main__":
    main()
