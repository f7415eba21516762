"""How a contestant of bench_2b.py talks: one JSON line in, one out. Plain Python, for every environment.

A contestant is a process of its own: `PYTHON peers/x.py MODEL [key=value ...]`. It loads the model, says
{"ready": seconds, ...} and then answers requests:

    {"do": "prefill", "n": 512}           reads so many ids into an empty cache, the last one's logits included
    {"do": "fill", "n": 8000}             makes a context of so many ids, to write after; not timed
    {"do": "decode", "n": 16}             writes so many ids after it, each the likeliest
    {"do": "memory"}                      bytes resident now, at most so far, and of those not of a file
"""

import json
import os
import random
import sys
import time

N_THREADS = 2
MAX_CONTEXT = 8192  # of the model: contexts stop short of it


def prompt_ids(n, *, vocab_size=256_000):
    """Return the same ids for everybody, BOS in front."""
    generator = random.Random(0)
    return [2] + [generator.randrange(1000, vocab_size - 1000) for _ in range(n - 1)]


def resident():
    """Return what /proc says of this process, in bytes."""
    words = {"VmRSS": "now", "VmHWM": "peak", "RssAnon": "anonymous"}
    found = {}
    with open("/proc/self/status") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in words:
                found[words[name]] = int(rest.split()[0]) * 1024
    return found


def serve(make):
    """Load a contestant with `make(model, **options)` and answer until the input ends.

    A contestant has prefill(n), fill(n), decode(n) and a dict `facts`.
    """
    model, options = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes the other way

    def say(**words):
        answers.write(json.dumps(words) + "\n")
        answers.flush()

    start = time.perf_counter()
    contestant = make(model, **options)
    say(ready=time.perf_counter() - start, facts=contestant.facts, memory=resident())
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "memory":
            say(**resident())
            continue
        call = getattr(contestant, request["do"])
        start = time.perf_counter()
        call(request["n"])
        say(seconds=time.perf_counter() - start)
