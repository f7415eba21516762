"""What every benchmark shares: models of real size with random weights, fair turns, one JSON line."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gemsmith.config import ModelConfig
from gemsmith.model.transformer import Transformer

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One measured promise: median values, their unit, and what was asked for.

    Attributes:
        target: The value to reach, in the unit of `measure`.
        measure: The number compared with the target, often a ratio of `ours` to `peer`.
        limit: The same quantity if only physics held it back, None where nothing sensible stands.
    """

    name: str
    ours: float
    peer: float | None
    limit: float | None
    target: float
    measure: float
    unit: str
    is_met: bool
    note: str = ""


def finish(result: Result, *, config: str, rows: Mapping[str, Any] | None = None) -> None:
    """Print the JSON line and keep it where `make targets` looks.

    Args:
        rows: What each contestant reached, by its name, where there were more than two.
    """
    line = {
        **{key: value for key, value in asdict(result).items() if key != "is_met"},
        "met": result.is_met,
        "commit": _commit(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **_peer_version()},
        "config": config,
        "command": f"python {' '.join(sys.argv)}",
        **({} if rows is None else {"rows": rows}),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{result.name}.json").write_text(json.dumps(line, indent=1) + "\n")
    print(json.dumps(line))


def take_turns(runs: dict[str, Callable[[], float]], *, n_runs: int = 5, n_warm: int = 1) -> dict[str, list[float]]:
    """Run the contestants one after the other, round by round, so that a slow minute hits all of them."""
    values: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(n_warm + n_runs):
        for name, run in runs.items():
            value = run()
            if round_number >= n_warm:
                values[name].append(value)
    return values


def show(values: dict[str, list[float]], unit: str) -> None:
    """Print median, lowest and highest of each contestant."""
    for name, row in values.items():
        spread = f"{min(row):10.2f} to {max(row):10.2f}"
        print(f"{name:28s} median {statistics.median(row):10.2f}  {spread} {unit}, {len(row)} runs")


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def random_network(config: ModelConfig, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Transformer:
    """Return a network of this shape with small random weights, made quickly."""
    network = Transformer(config, dtype=dtype, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(1_000_003, generator=generator).mul_(0.02).to(dtype)  # a prime: no two rows alike
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            noise = first.roll(1009 * index)  # nor two matrices, which some programs would keep once
            flat = parameter.view(-1)
            whole = flat.numel() // noise.numel() * noise.numel()
            flat[:whole].view(-1, noise.numel()).copy_(noise)
            flat[whole:].copy_(noise[: flat.numel() - whole])
    return network.eval()


def peer_of(network: Transformer, *, attn_implementation: str = "eager") -> torch.nn.Module:
    """Return the transformers model of the same shape that shares the network's dense weights.

    Gemma 2 runs there in "eager" only: its attention cap has no scaled_dot_product_attention.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from oracle import CLASSES, oracle_config

    config = oracle_config(network.config)
    config._attn_implementation = attn_implementation
    with torch.device("meta"):
        model = CLASSES[network.config.family][1](config)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers were on the meta device too
    scale = torch.tensor(network.config.d_model**0.5)
    model.model.embed_tokens.embed_scale = scale
    return model.eval()


def read_limit() -> float:
    """Return the fastest read of main memory seen, in GB/s."""
    from gemsmith.kernels import probe

    return probe.read_rate() / 1e9


def int8_limit() -> float:
    """Return the fastest products of 8-bit numbers seen with operands in registers, in GFLOP/s: two a product."""
    from gemsmith.kernels import probe

    rates = [probe.product_rate(kind) for kind in ("int8", "int8 tiles")]
    return max(2 * rate for rate in rates if rate is not None) / 1e9


def matrix_limit(dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the fastest matrix product seen from torch, in GFLOP/s: 2,048 cubed."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return max(2 * 2048**3 / seconds(lambda: a @ b) / 1e9 for _ in range(8))


def device_name() -> str:
    """Return the processor's name and number of cores."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return statistics.median(values)


def _commit() -> str:
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _peer_version() -> dict[str, str]:
    module = sys.modules.get("transformers")
    return {} if module is None else {"transformers": module.__version__}
