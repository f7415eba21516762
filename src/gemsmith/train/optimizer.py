"""Optimizers of a network's parameters, and the schedule of their rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gemsmith.errors import TrainingError


@dataclass(frozen=True)
class OptimizerSpec:
    """Rates and their course.

    Attributes:
        matrix_rate: Peak rate of Muon, for matrices inside blocks; updates have the size AdamW's would.
        other_rate: Peak rate of AdamW, for the embedding and norms.
        weight_decay: Decoupled, of matrices and embedding.
        warmup_steps: Steps over which the rate rises from nothing.
        decay_share: Last share of a run in which it falls to nothing.
        clip: Largest norm of the whole gradient.
        z_weight: Weight of the squared log normalizer in the loss.
    """

    matrix_rate: float
    other_rate: float
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_share: float = 0.2
    clip: float = 1.0
    z_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "other_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise TrainingError(
                    f"{name} must be a number above 0; got {value!r}. Try 0.003 for a rate, 1 for clip."
                )
        if not 0 < self.decay_share <= 1:
            raise TrainingError(f"decay_share must lie above 0 and up to 1; got {self.decay_share!r}. Try 0.2.")


def build_optimizers(weights: Mapping[str, Tensor], spec: OptimizerSpec) -> dict[str, torch.optim.Optimizer]:
    """Return Muon over the matrices of blocks and AdamW over everything else, as "muon" and "adamw".

    Source: Muon is Keller Jordan's, with the update scale of arXiv:2502.16982; AdamW is arXiv:1711.05101.
    """
    matrices = [w for name, w in weights.items() if w.ndim == 2 and name.startswith("layers.")]
    norms = [w for w in weights.values() if w.ndim == 1]
    tables = [w for name, w in weights.items() if w.ndim == 2 and not name.startswith("layers.")]
    muon = torch.optim.Muon(
        matrices, lr=spec.matrix_rate, weight_decay=spec.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": spec.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=spec.other_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    return {"muon": muon, "adamw": adamw}


def rate_factor(step: int, progress: float, spec: OptimizerSpec) -> float:
    """Return the share of the peak rate: rise by steps, hold, fall in a straight line to 0.

    Args:
        progress: Share of the run that is done, by steps or by time.

    Source: warm-up, stable, decay: MiniCPM, arXiv:2404.06395, section 4.
    """
    rising = min(1.0, (step + 1) / (spec.warmup_steps + 1))
    falling = min(1.0, (1.0 - progress) / spec.decay_share)
    return max(0.0, min(rising, falling))


def set_rates(optimizers: Mapping[str, torch.optim.Optimizer], factor: float, spec: OptimizerSpec) -> None:
    """Set every group to its peak rate times `factor`."""
    for name, peak in (("muon", spec.matrix_rate), ("adamw", spec.other_rate)):
        for group in optimizers[name].param_groups:
            group["lr"] = peak * factor
