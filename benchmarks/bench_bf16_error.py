"""How far is bfloat16 from float32 at the Gemma 2 2B shape, beside transformers? Physics: one rounding a step.

python benchmarks/bench_bf16_error.py [n_layers]
"""

import gc
import statistics
import sys

import torch
from common import Result, finish, peer_of, random_network

from gemsmith.config import preset
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer

TARGET = 1.1


def rms(x: torch.Tensor) -> float:
    """Return the root of the mean square."""
    return x.square().mean().sqrt().item()


class Widened(Linear):
    """A linear that computes in float32 with weights stored in bfloat16, to spare memory."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.float())


def widened(narrow: Transformer) -> Transformer:
    """Return the network in float32 arithmetic with the same weights."""
    wide = Transformer(narrow.config, device="meta")
    weights = narrow.state_dict()
    matrices = {name for name in weights if name.endswith("_proj.weight")}
    wide.load_state_dict({n: x if n in matrices else x.float() for n, x in weights.items()}, assign=True)

    def widen(_: str, linear: Linear) -> Linear:
        linear.__class__ = Widened
        return linear

    wide.replace_linears(widen)
    return wide


@torch.inference_mode()
def ratio(seed: int, n_layers: int, *, is_packed: bool) -> float:
    """Return our RMS logit error over that of transformers, both against float32 with the same weights."""
    config = preset("gemma-2-2b")
    config = config.replace(layers=config.layers[:n_layers])
    narrow = random_network(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in narrow.parameters():  # weights of the size trained models have
        flat = parameter.view(-1)
        if parameter.ndim == 2:
            flat.mul_(parameter.shape[1] ** -0.5 / 0.02)
        flat.add_(torch.randn(1, generator=generator).item() * 1e-4)
    token_ids = torch.randint(0, config.vocab_size, (1, 48), generator=generator)
    theirs = peer_of(narrow)(input_ids=token_ids, use_cache=False).logits.float()
    truth = widened(narrow)(token_ids)
    gc.collect()
    if is_packed:
        narrow.pack()
    ours = narrow(token_ids)
    return rms(ours - truth) / rms(theirs - truth)


def main(n_layers: int) -> None:
    medians = {}
    for is_packed in (True, False):
        ratios = [ratio(seed, n_layers, is_packed=is_packed) for seed in range(5)]
        medians[is_packed] = statistics.median(ratios)
        print("packed" if is_packed else "plain", [round(x, 3) for x in ratios], "median", round(medians[is_packed], 3))
    worst = max(medians.values())
    result = Result(
        "bf16_error", medians[True], 1.0, None, TARGET, worst, "RMS logit error over transformers", worst <= TARGET,
        note=f"plain weights {medians[False]:.3f}, packed {medians[True]:.3f}",
    )  # fmt: skip
    finish(result, config=f"gemma-2-2b, {n_layers} layers, five seeds, 48 tokens")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 26)
