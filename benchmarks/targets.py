"""Print every target of the project: met, missed, or unmeasured.

python benchmarks/targets.py              the table
python benchmarks/targets.py --commands   what measures them, each command once
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
# name of the benchmark's row -> (what is promised, the command that measures it)
TARGETS = {
    "decode": ("decode at least 1.15 x transformers, 2B shape", "bench_2b.py decode --bits 16"),
    "decode_int4": ("int4 decode at least 1.5 x the best peer, 2B shape", "bench_2b.py decode --bits 4"),
    "decode_int8_row": (
        "int8 decode at least 1.5 x llama.cpp's Q8_0, 2B shape, 8.0 bits to its 8.5",
        "bench_2b.py decode --bits 8",
    ),
    "decode_int8": ("int8 decode at least 1.5 x llama.cpp's Q8_0, 2B shape", "bench_2b.py decode --bits 8"),
    "decode_bf16": ("bf16 decode at least 80% of the read limit, 2B shape", "bench_2b.py decode --bits 16"),
    "decode_8k": (
        "decode after 8k loses at most 5 points more than its bytes, bf16 caches",
        "bench_2b.py decode --context 8000",
    ),
    "decode_8k_int8": (
        "decode after 8k loses at most 5 points more than its bytes, int8 caches",
        "bench_2b.py decode --context 8000",
    ),
    "prefill_int4_512": ("int4 prefill of 512 at least 2 x the best peer, 2B shape", "bench_2b.py prefill --bits 4"),
    "prefill_int4_4096": (
        "int4 prefill of 4,096 at least 2 x the best peer, 2B shape",
        "bench_2b.py prefill --bits 4 --length 4096",
    ),
    "prefill_512": ("prefill of 512 at least 1.4 x transformers, 2B shape", "bench_2b.py prefill --bits 16"),
    "prefill_4096": (
        "prefill of 4,096 at least 1.6 x transformers, 2B shape",
        "bench_2b.py prefill --bits 16 --length 4096",
    ),
    "memory_int4": ("int4 memory at most 1.1 x llama.cpp's, 2B shape", "bench_2b.py memory --bits 4"),
    "start_int4": ("int4 first token no later than llama.cpp's, 2B shape", "bench_2b.py start --bits 4"),
    "prefill_curve": (
        "a token of prompt costs local layers at 16k what it costs at 8k (1.15)",
        "bench_prefill_curve.py",
    ),
    "bf16_error": ("bfloat16 logit error at most 1.1 x that of transformers, 2B shape", "bench_bf16_error.py"),
    "load_memory_gemma-2-2b": ("peak memory of loading at most 1.15 x the file, 2B shape", "bench_load.py gemma-2-2b"),
    "pebble_decode": ("pebble writes at least 2,000 tokens/s, in bfloat16", "bench_pebble.py"),
    "pebble_decode_int8": ("pebble writes at least 2,000 tokens/s, in 8 bits", "bench_pebble.py"),
    "pebble_first_token": ("pebble's first token within 4 s of Enter", "bench_pebble.py"),
    "pebble_stories": ("pebble: at most 1.1 bits per byte on held-out stories", "bench_pebble_quality.py"),
    "pebble_leads": ("pebble: at most 1.9 bits per byte on held-out encyclopedic leads", "bench_pebble_quality.py"),
    "sample_8192": ("choosing a token of 8,192 in at most 15 us, top-k, top-p and penalty", "bench_sample.py"),
    "sample_256000": ("choosing a token of 256,000 in at most 150 us", "bench_sample.py"),
    "train_a": ("training of the 36M shape at least 2.4 x transformers", "bench_train.py A"),
    "train_a_rate": ("training of the 36M shape at least 4,500 tokens/s", "bench_train.py A"),
    "train_b": ("training of the 200M shape at least 1.7 x transformers", "bench_train.py B"),
    "train_c": ("training of 200M with 256,000 pieces at least 1.6 x transformers", "bench_train.py C"),
    "train_c_memory": ("and in at most half its peak memory", "bench_train.py C"),
    "train_length": ("rows of 16k in no more memory than transformers' longest", "bench_train_length.py"),
    "pretrain": ("30 minutes of pebble at most 0.97 x the bits per byte of transformers' loop", "bench_pretrain.py"),
}


def main() -> None:
    """Print the table, or the commands."""
    if "--commands" in sys.argv[1:]:
        print(*dict.fromkeys(command for _, command in TARGETS.values()), sep="\n")
        return
    for name, (promise, command) in TARGETS.items():
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            print(f"unmeasured  {promise:76s} python benchmarks/{command}")
            continue
        row = json.loads(path.read_text())
        state = "met" if row["met"] else "missed"
        value = f"{row['measure']:.3g} (target {row['target']:g})"
        print(f"{state:11s} {promise:76s} {value}, {row['device']}, {row['commit']}")


if __name__ == "__main__":
    main()
