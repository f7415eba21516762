"""Training loops to compare, each in a process of its own: ours, and transformers with AdamW under autocast.

    python benchmarks/contenders.py CONTENDER SHAPE N_STEPS

Prints a line per step: tokens per second, and the peak of resident memory so far in GB. The same
threads, shapes, batches, optimizer (AdamW, clipped) and precision (bfloat16 arithmetic on float32
weights) for all; transformers with two settings of the allocator, ours among them.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.infer.allocator import tune_allocator

N_THREADS = 2
RATE = 1e-3
CLIP = 1.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a network with Gemma 2's blocks, and of its batches."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    n_rows: int
    row: int = 512
    window: int = 256

    @property
    def n_tokens(self) -> int:
        """Tokens of a step."""
        return self.n_rows * self.row

    def config(self) -> ModelConfig:
        """Return the configuration, every other layer local."""
        local = LayerSpec(
            "local", self.n_heads, self.n_kv_heads, self.head_dim, self.d_ff,
            attn_scale=self.head_dim**-0.5, window=self.window, attn_softcap=50.0,
        )  # fmt: skip
        both = (local, replace(local, kind="global", window=None))
        layers = tuple(both[i % 2] for i in range(self.n_layers))
        return ModelConfig("gemma2", self.vocab_size, self.d_model, max(8192, self.row), layers, final_softcap=30.0)

    def flops_per_token(self) -> float:
        """Return the arithmetic of matrix products a trained token needs: three times the forward pass."""
        attention = 2 * self.n_heads + 2 * self.n_kv_heads
        per_layer = self.d_model * (attention * self.head_dim + 3 * self.d_ff)
        mean_keys = self.row / 2, sum(min(i + 1, self.window) for i in range(self.row)) / self.row
        scores = 2 * self.n_heads * self.head_dim * sum(mean_keys) / 2
        return 6 * (self.n_layers * (per_layer + scores) + self.vocab_size * self.d_model)


SHAPES = {
    "A": Shape(512, 8, 8, 4, 64, 2048, 8192, n_rows=16),
    "B": Shape(1024, 12, 4, 2, 256, 4096, 8192, n_rows=4),
    "C": Shape(1024, 12, 4, 2, 256, 4096, 256_000, n_rows=4),
    **{f"L{n}": Shape(512, 8, 8, 4, 64, 2048, 8192, n_rows=max(1, 2048 // n), row=n) for n in
       (512, 1024, 2048, 4096, 8192, 16384)},
}  # fmt: skip


def batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and targets without end, the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(3, shape.vocab_size, (shape.n_rows, shape.row + 1), generator=generator)
        yield ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def gemsmith_step(shape: Shape, *, is_recomputed: bool = False) -> Callable[[Tensor, Tensor], float]:
    """Return our step: (ids, targets) -> loss."""
    from gemsmith.data.mixture import Batch
    from gemsmith.train.initial import initial_weights
    from gemsmith.train.loop import TrainState, train_step
    from gemsmith.train.loss import LossSpec
    from gemsmith.train.next_token import next_token_loss
    from gemsmith.train.optimizer import OptimizerSpec, build_optimizers

    config = shape.config()
    spec = OptimizerSpec(matrix_rate=RATE, other_rate=RATE, clip=CLIP, optimizer="adamw")
    weights = initial_weights(config, seed=0)
    state = TrainState(weights, build_optimizers(weights, spec))
    loss_fn = next_token_loss(config, LossSpec(config.final_softcap), dtype=torch.bfloat16, is_recomputed=is_recomputed)
    positions = torch.arange(shape.row).expand(shape.n_rows, -1).contiguous()

    def step(ids: Tensor, targets: Tensor) -> float:
        every = torch.ones_like(ids, dtype=torch.bool)
        batch = Batch(ids, targets, every, torch.zeros_like(ids), positions)
        return train_step(state, [batch], loss_fn, spec=spec).nll

    return step


def transformers_step(shape: Shape, *, is_compiled: bool = False) -> Callable[[Tensor, Tensor], float]:
    """Return the step of a plain loop over transformers' Gemma 2, whose only attention with a cap is "eager"."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads, head_dim=shape.head_dim,
        intermediate_size=shape.d_ff, sliding_window=shape.window, max_position_embeddings=max(8192, shape.row),
        query_pre_attn_scalar=shape.head_dim, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if is_compiled else model

    def step(ids: Tensor, targets: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


CONTENDERS: dict[str, Callable[[Shape], Callable[[Tensor, Tensor], float]]] = {
    "gemsmith": gemsmith_step,
    "gemsmith-recomputed": lambda shape: gemsmith_step(shape, is_recomputed=True),
    "transformers": transformers_step,
    "transformers-kept": transformers_step,
    "transformers-compiled": lambda shape: transformers_step(shape, is_compiled=True),
}
# Our training never gives memory back to the system; who runs out of memory that way gives back blocks
# of a gigabyte and the end of the heap above two.
GIVES_BACK = ("transformers",)


@dataclass(frozen=True)
class Measured:
    """What a contender's process said; rates without its first two steps."""

    rates: list[float]
    peak_gb: float
    losses: list[float]


def measure(contender: str, shape: str, *, n_steps: int, timeout_s: float = 900.0) -> Measured | None:
    """Run a contender in its own process; None where it died, as for want of memory, or took too long."""
    command = [sys.executable, "-W", "ignore", __file__, contender, shape, str(n_steps)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{contender} at shape {shape} failed: {str(error)[-300:]}")
        return None
    rows = [list(map(float, line.split()[1:])) for line in said.splitlines() if line.startswith("step ")]
    return Measured([row[0] for row in rows[2:]], rows[-1][1], [row[2] for row in rows])


def main(contender: str, name: str, n_steps: int) -> None:
    tune_allocator(for_training=contender not in GIVES_BACK)
    torch.set_num_threads(N_THREADS)
    torch.manual_seed(0)
    # A process that needs more than the machine has is to fail, not to be killed with its neighbors.
    facts = Path("/proc/meminfo").read_text().splitlines()
    total = int(next(line for line in facts if line.startswith("MemAvailable")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (total, total))
    shape = SHAPES[name]
    step = CONTENDERS[contender](shape)
    for _, (ids, targets) in zip(range(n_steps), batches(shape), strict=False):
        start = time.perf_counter()
        loss = step(ids, targets)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print("step", shape.n_tokens / seconds, peak, loss, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
