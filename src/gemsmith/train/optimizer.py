"""Optimizers of a network's parameters."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemsmith.errors import TrainingError
from gemsmith.kernels import fused_adamw
from gemsmith.train.schedule import SCHEDULES, rate_share

OPTIMIZERS = ("muon", "adamw")
# Source: GPT-3, arXiv:2005.14165, appendix B; the second beta is shorter than Adam's own 0.999.
_BETAS, _EPS = (0.9, 0.95), 1e-8
# Source: Keller Jordan's Muon, https://kellerjordan.github.io/posts/muon/.
_MOMENTUM = 0.95


@dataclass(frozen=True)
class OptimizerSpec:
    """Rates and their course.

    Attributes:
        matrix_rate: Peak rate of matrices inside blocks; Muon's updates have the size AdamW's would.
        other_rate: Peak rate of AdamW for the embedding and norms.
        weight_decay: Decoupled, of matrices and embedding; never of norms.
        warmup_steps: Steps over which the rate rises from nothing.
        decay_share: Last share of a run in which a "wsd" schedule falls.
        clip: Largest norm of the whole gradient.
        z_weight: Weight of the squared log normalizer in the loss.
        optimizer: Of the matrices inside blocks, "muon" or "adamw"; the rest has AdamW either way.
        schedule: "wsd", "cosine" or "linear".
        floor_share: Share of the peak rate that is left at the end of a run.
    """

    matrix_rate: float
    other_rate: float
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_share: float = 0.2
    clip: float = 1.0
    z_weight: float = 0.0
    optimizer: str = "muon"
    schedule: str = "wsd"
    floor_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("matrix_rate", "other_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise TrainingError(
                    f"{name} must be a number above 0; got {value!r}. Try 0.003 for a rate, 1 for clip."
                )
        for name in ("weight_decay", "warmup_steps", "z_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise TrainingError(f"{name} must be a number from 0 up; got {value!r}. Use 0 for none.")
        if not 0 < self.decay_share <= 1:
            raise TrainingError(f"decay_share must lie above 0 and up to 1; got {self.decay_share!r}. Try 0.2.")
        if not 0 <= self.floor_share < 1:
            raise TrainingError(f"floor_share must lie from 0 to below 1; got {self.floor_share!r}. Try 0.1.")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (value := getattr(self, name)) not in known:
                raise TrainingError(f"{name} must be one of {', '.join(known)}; got {value!r}. Choose one of them.")


def build_optimizers(weights: Mapping[str, Tensor], spec: OptimizerSpec) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of all weights: "adamw", and "muon" if matrices of blocks have it.

    Every group keeps its peak rate under "peak".

    Source: Muon is Keller Jordan's, with the update scale of arXiv:2502.16982; AdamW is arXiv:1711.05101.
    """
    matrices = [w for name, w in weights.items() if w.ndim == 2 and name.startswith("layers.")]
    tables = [w for name, w in weights.items() if w.ndim == 2 and not name.startswith("layers.")]
    norms = [w for w in weights.values() if w.ndim < 2]
    of_blocks = _group(matrices, spec.matrix_rate, spec.weight_decay)
    others = [_group(tables, spec.other_rate, spec.weight_decay), _group(norms, spec.other_rate, 0.0)]
    if spec.optimizer == "adamw":
        return {"adamw": _adamw([of_blocks, *others])}
    muon = torch.optim.Muon([of_blocks], momentum=_MOMENTUM, adjust_lr_fn="match_rms_adamw")
    return {"muon": muon, "adamw": _adamw(others)}


def rate_factor(step: int, progress: float, spec: OptimizerSpec) -> float:
    """Return the share of the peak rates that a step takes.

    Args:
        progress: Share of the run that is done, by steps, tokens or time.
    """
    return rate_share(
        step,
        progress,
        schedule=spec.schedule,
        warmup_steps=spec.warmup_steps,
        decay_share=spec.decay_share,
        floor_share=spec.floor_share,
    )


def update(optimizers: Iterable[torch.optim.Optimizer], *, factor: float, grad_scale: float) -> None:
    """Let every optimizer step and clear its gradients.

    Args:
        factor: Share of the peak rates.
        grad_scale: Factor of every gradient, as the mean over targets and clipping find it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        if isinstance(optimizer, fused_adamw.AdamW):
            optimizer.step(grad_scale=grad_scale)
        else:
            for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
                if weight.grad is not None:
                    weight.grad.mul_(grad_scale)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _group(weights: list[Tensor], peak: float, weight_decay: float) -> dict[str, Any]:
    return {"params": weights, "peak": peak, "lr": peak, "weight_decay": weight_decay}


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # Where the kernel cannot serve a weight, torch's own fused step does.
    return fused_adamw.AdamW(groups, betas=_BETAS, eps=_EPS, fused=True)
