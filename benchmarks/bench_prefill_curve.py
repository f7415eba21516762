"""What does one more token of prompt cost, from 1k to 16k? Physics: flat for local layers, rising for global ones.

Draws results/prefill_curve.png: seconds per 1,000 tokens at the Gemma 2 2B shape cut to two layers
(one local, one global), each timed alone, beside the whole two-layer model of transformers.

    python benchmarks/bench_prefill_curve.py
"""

from dataclasses import replace

import matplotlib as mpl
import torch
from common import RESULTS, Result, finish, median, peer_of, random_network, seconds, take_turns

from gemsmith.config import ModelConfig, preset
from gemsmith.infer.allocator import tune_allocator
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout

mpl.use("Agg")
LENGTHS = (1024, 2048, 4096, 8192, 16_384)
PEER_LENGTHS = (1024, 2048, 4096, 8192)  # its scores for 16k would take 8 GB a layer


def cut(kinds: tuple[str, ...]) -> ModelConfig:
    """Return the 2B shape with layers of these kinds, a small vocabulary and a long context."""
    config = preset("gemma-2-2b")
    layers = tuple(next(layer for layer in config.layers if layer.kind == kind) for kind in kinds)
    return replace(config, layers=layers, vocab_size=1024, max_seq_len=max(LENGTHS))


def cost(network: torch.nn.Module, n_tokens: int) -> float:
    """Return the microseconds per token of reading a prompt."""
    token_ids = torch.randint(0, 1024, (n_tokens,), generator=torch.Generator().manual_seed(0))
    cache = KVCache(network.config, capacity=n_tokens, dtype=torch.bfloat16)
    return seconds(lambda: network.hidden(token_ids, Layout.packed([n_tokens]), cache=cache)) / n_tokens * 1e6


def main() -> None:
    tune_allocator()
    kinds = {"local": ("local",), "global": ("global",), "both": ("local", "global")}
    networks = {name: random_network(cut(layers)) for name, layers in kinds.items()}
    peer = peer_of(networks["both"])
    for network in networks.values():
        network.pack()
    curves: dict[str, list[float]] = {name: [] for name in (*networks, "transformers")}
    with torch.inference_mode():
        for n in LENGTHS:
            runs = {name: (lambda network=network, n=n: cost(network, n)) for name, network in networks.items()}
            if n in PEER_LENGTHS:
                token_ids = torch.zeros(1, n, dtype=torch.long)
                runs["transformers"] = lambda ids=token_ids, n=n: (
                    seconds(lambda: peer(input_ids=ids, use_cache=True, logits_to_keep=1)) / n * 1e6
                )
            values = take_turns(runs, n_runs=3)
            for name, row in values.items():
                curves[name].append(median(row))
            print(n, {name: round(median(row), 1) for name, row in values.items()}, "microseconds a token")
    draw(curves)
    growth = curves["local"][-1] / curves["local"][LENGTHS.index(8192)]
    result = Result(
        "prefill_curve", growth, None, 1.0, 1.15, growth, "cost of a token at 16k over that at 8k, local layers",
        growth <= 1.15, note=f"microseconds a token, by length {LENGTHS}: {curves}",
    )  # fmt: skip
    finish(result, config="gemma-2-2b layers, bfloat16, two layers")


def draw(curves: dict[str, list[float]]) -> None:
    """Plot cost per token against length."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    labels = {
        "local": "one local layer (window 4,096)",
        "global": "one global layer",
        "both": "gemsmith, both",
        "transformers": "transformers eager, both",
    }
    for name, row in curves.items():
        axes.plot(LENGTHS[: len(row)], row, marker="o", label=labels[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
    axes.set(
        xlabel="prompt, tokens", ylabel="microseconds per token", ylim=(0, None), title="Prefill, Gemma 2 2B layers"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "prefill_curve.png", dpi=110)


if __name__ == "__main__":
    main()
