"""Gradients by several processes, one thread each, over weights that all of them see.

Threads inside every operation must all be awake at its end; on cores that others use too, each one
waits for the slowest thousands of times a step. Processes wait for each other once a step.
"""

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.train.loop import LossFn, accumulate

# The names of a batch's documents stay here, where errors are told.
_FIELDS = tuple(name for name in Batch.__dataclass_fields__ if name != "sources")


class Workers:
    """Processes that each take an equal share of a batch's rows; the calling one takes the first.

    Args:
        weights: Moved to shared memory; optimizers go on updating them in place.
        build_loss: Importable function without arguments, or a partial of one, that returns the loss
            function in each process.
        n_processes: The calling process included.
    """

    def __init__(self, weights: Mapping[str, Tensor], build_loss: Callable[[], LossFn], *, n_processes: int) -> None:
        context = mp.get_context("spawn")
        self.pipes: list[Connection] = []
        self.gradients: list[dict[str, Tensor]] = []
        for weight in weights.values():
            weight.data.share_memory_()
        for _ in range(n_processes - 1):
            ours, theirs = context.Pipe()
            gradients = {name: torch.zeros_like(w, requires_grad=False).share_memory_() for name, w in weights.items()}
            shared = {name: weight.detach() for name, weight in weights.items()}
            context.Process(target=_serve, args=(theirs, shared, gradients, build_loss), daemon=True).start()
            theirs.close()
            self.pipes.append(ours)  # pyright: ignore[reportArgumentType]
            self.gradients.append(gradients)

    def accumulate(
        self, weights: Mapping[str, Tensor], micro_batches: Sequence[Batch], loss_fn: LossFn, scale: float
    ) -> float:
        """Add the gradient of `scale` times the summed losses; return the scaled sum.

        Raises:
            TrainingError: A process ended, or rows cannot be shared out equally.
        """
        shares = [_split(batch, len(self.pipes) + 1) for batch in micro_batches]
        try:
            for number, pipe in enumerate(self.pipes, 1):
                pipe.send(([_plain(parts[number]) for parts in shares], scale))
            total = accumulate(weights, [parts[0] for parts in shares], loss_fn, scale)
            total += sum(pipe.recv() for pipe in self.pipes)
        except (EOFError, OSError) as error:
            raise TrainingError(
                f"every process of a run must live; got {type(error).__name__} from one that ended. "
                "Look for its message above; start the run again to go on from its last checkpoint."
            ) from error
        for gradients in self.gradients:
            for name, weight in weights.items():
                weight.grad = gradients[name].clone() if weight.grad is None else weight.grad.add_(gradients[name])
        return total

    def close(self) -> None:
        """Let the other processes end."""
        for pipe in self.pipes:
            pipe.close()
        self.pipes, self.gradients = [], []


def _split(batch: Batch, n_parts: int) -> list[Batch]:
    n_rows = batch.token_ids.shape[0]
    if n_rows % n_parts:
        raise TrainingError(f"rows of a batch must be a multiple of {n_parts} processes; got {n_rows}. Change either.")
    size = n_rows // n_parts
    return [Batch(*(getattr(batch, f)[i : i + size] for f in _FIELDS)) for i in range(0, n_rows, size)]


def _plain(batch: Batch) -> tuple[object, ...]:
    """Return arrays that a pipe copies, instead of tensors that would travel as open files."""
    return tuple(getattr(batch, field).numpy() for field in _FIELDS)


def _batch(arrays: tuple[np.ndarray, ...]) -> Batch:
    token_ids, targets, loss_mask, documents, positions = map(torch.from_numpy, arrays)
    return Batch(token_ids, targets, loss_mask, documents, positions)


def _serve(
    pipe: Connection, weights: dict[str, Tensor], gradients: dict[str, Tensor], build_loss: Callable[[], LossFn]
) -> None:
    """Answer batches with their loss, gradients left in shared memory, until the pipe closes."""
    torch.set_num_threads(1)
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    loss_fn = build_loss()
    while True:
        try:
            batches, scale = pipe.recv()
        except EOFError:
            return
        micro_batches = [_batch(arrays) for arrays in batches]
        total = accumulate(leaves, micro_batches, loss_fn, scale)
        for name, leaf in leaves.items():
            if leaf.grad is None:
                gradients[name].zero_()
            else:
                gradients[name].copy_(leaf.grad)
            leaf.grad = None
        pipe.send(total)
