"""How fast does the Gemma 2 2B shape write, one stream? Physics: every weight is read once a token.

python benchmarks/bench_decode.py
"""

import torch
from common import Result, finish, median, peer_of, random_network, read_limit, seconds, show, take_turns

from gemsmith.config import preset
from gemsmith.infer.allocator import tune_allocator
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout

N_PROMPT, N_NEW, TARGET = 64, 12, 1.15


def main() -> None:
    config = preset("gemma-2-2b")
    tune_allocator()
    network = random_network(config)
    peer = peer_of(network)
    network.pack()
    prompt = torch.randint(0, config.vocab_size, (N_PROMPT,), generator=torch.Generator().manual_seed(0))
    cache = KVCache(config, capacity=256, dtype=torch.bfloat16)

    def ours() -> float:
        cache.clear()
        network.hidden(prompt, Layout.packed([N_PROMPT]), cache=cache)

        def write() -> None:
            token_ids = prompt[:1]
            for place in range(N_PROMPT, N_PROMPT + N_NEW):
                hidden = network.hidden(token_ids, Layout.packed([1], starts=[place]), cache=cache)
                token_ids = network.logits(hidden).argmax(-1)

        return N_NEW / seconds(write)

    def theirs() -> float:
        known = peer(input_ids=prompt[None], use_cache=True, logits_to_keep=1).past_key_values

        def write() -> None:
            token_ids = prompt[None, :1]
            for _ in range(N_NEW):
                token_ids = peer(input_ids=token_ids, past_key_values=known, use_cache=True).logits[:, -1:].argmax(-1)

        return N_NEW / seconds(write)

    with torch.inference_mode():
        values = take_turns({"gemsmith": ours, "transformers eager": theirs})
        rate = read_limit()
    show(values, "tokens/s")
    mine, other = median(values["gemsmith"]), median(values["transformers eager"])
    limit = rate / (2 * config.n_params / 1e9)
    print(
        f"memory read {rate:.1f} GB/s: limit {limit:.2f} tokens/s, reached {mine / limit:.0%}; ratio {mine / other:.2f}"
    )
    result = Result(
        "decode", mine, other, limit, TARGET, mine / other, "ratio of tokens/s to transformers", mine / other >= TARGET
    )
    finish(result, config=f"gemma-2-2b, random bfloat16, batch 1, {N_NEW} tokens after {N_PROMPT}")


if __name__ == "__main__":
    main()
