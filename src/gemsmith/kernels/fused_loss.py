"""Loss over the vocabulary, its gradient written over the scores: the fast equal of train.loss._loss_and_gradient."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemsmith.errors import TrainingError
from gemsmith.kernels import native
from gemsmith.kernels.operators import define


def is_suitable(logits: Tensor) -> bool:
    """Tell whether the kernel serves these scores."""
    return logits.ndim == 2 and native.serves(logits) and logits.is_contiguous()


def loss_and_gradient(
    logits: Float[Tensor, "T V"], targets: Int[Tensor, " T"], softcap: float | None, z_weight: float
) -> tuple[Tensor, Tensor]:
    """Return what train.loss._loss_and_gradient returns; the gradient is `logits`, overwritten.

    Raises:
        TrainingError: A target is no piece of the vocabulary; nothing is written then.
    """
    return _loss(logits, targets, 0.0 if softcap is None else softcap, z_weight), logits


def _compute(logits: Tensor, targets: Tensor, softcap: float, z_weight: float) -> Tensor:
    n_rows, vocab_size = logits.shape
    targets = targets.long().contiguous()
    _check(targets, vocab_size)
    library = native.need()
    row_loss = logits.new_empty(n_rows, dtype=torch.float64)
    n_scratch = 0 if logits.dtype == torch.float32 else library.gs_max_threads()
    scratch = logits.new_empty(n_scratch, vocab_size, dtype=torch.float32)
    library.gs_loss_and_gradient(
        logits.data_ptr(), targets.data_ptr(), row_loss.data_ptr(), scratch.data_ptr(), n_rows, vocab_size,
        softcap, z_weight, native.DTYPES[logits.dtype],
    )  # fmt: skip
    # In order, whatever the number of threads.
    return torch.tensor(math.fsum(row_loss.tolist()), dtype=torch.float32)


def _check(targets: Tensor, vocab_size: int) -> None:
    """Refuse targets that would be read and written outside the scores."""
    outside = targets[(targets < 0) | (targets >= vocab_size)]
    if len(outside):
        raise TrainingError(
            f"targets must lie in 0 to {vocab_size - 1}; got {int(outside[0])}. "
            "Mask tokens that have no target instead of giving them one."
        )


_loss = define(
    "loss_and_gradient(Tensor(a!) logits, Tensor targets, float softcap, float z_weight) -> Tensor",
    compute=_compute,
    shape=lambda logits, targets, softcap, z_weight: logits.new_empty((), dtype=torch.float32),
)
