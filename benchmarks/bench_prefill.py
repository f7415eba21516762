"""How fast is a prompt read at the Gemma 2 2B shape? Physics: 4 GFLOP a token over the matrix rate, plus attention.

Both sides get the same threads, weights and allocator; transformers runs in its only legal attention here.

    python benchmarks/bench_prefill.py [512|4096]
"""

import sys

import torch
from common import Result, finish, matrix_limit, median, peer_of, random_network, seconds, show, take_turns

from gemsmith.config import preset
from gemsmith.infer.allocator import tune_allocator
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout

TARGETS = {512: 1.4, 4096: 1.6}


def main(n_tokens: int) -> None:
    config = preset("gemma-2-2b")
    tune_allocator()
    network = random_network(config)
    peer = peer_of(network)
    network.pack()
    token_ids = torch.randint(0, config.vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(0))
    cache = KVCache(config, capacity=n_tokens + 64, dtype=torch.bfloat16)

    def ours() -> float:
        cache.clear()
        layout = Layout.packed([n_tokens])
        return n_tokens / seconds(lambda: network.logits(network.hidden(token_ids, layout, cache=cache)[-1:]))

    def theirs() -> float:
        return n_tokens / seconds(lambda: peer(input_ids=token_ids[None], use_cache=True, logits_to_keep=1))

    with torch.inference_mode():
        values = take_turns({"gemsmith": ours, "transformers eager": theirs}, n_runs=5 if n_tokens < 2048 else 3)
        rate = matrix_limit()
    show(values, "tokens/s")
    products = 2 * (config.n_params - config.vocab_size * config.d_model) * n_tokens
    pairs = sum(min(i + 1, layer.window or n_tokens) for layer in config.layers for i in range(n_tokens))
    attention = 4 * pairs * config.layers[0].n_heads * config.layers[0].head_dim
    limit = n_tokens / ((products + attention) / (rate * 1e9))
    mine, other = median(values["gemsmith"]), median(values["transformers eager"])
    print(f"matrix rate {rate:.0f} GFLOP/s: limit {limit:.0f} tokens/s, reached {mine / limit:.0%}")
    print(f"ratio {mine / other:.2f}")
    result = Result(
        f"prefill_{n_tokens}", mine, other, limit, TARGETS[n_tokens], mine / other, "ratio of tokens/s to transformers",
        mine / other >= TARGETS[n_tokens],
    )  # fmt: skip
    finish(result, config=f"gemma-2-2b, random bfloat16, {n_tokens} tokens, batch 1")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
