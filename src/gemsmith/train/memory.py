"""What training a network needs in memory, part by part, and whether this machine has it."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.errors import MemoryLimitError
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.train.initial import initial_weights
from gemsmith.train.loss import scratch_bytes
from gemsmith.train.optimizer import OptimizerSpec
from gemsmith.weights.memory import available_bytes, in_gb

_FLOAT = 4
_LIBRARIES = 128 << 20  # what torch and its libraries take at their first products
# What an allocator holds between blocks of many sizes; 9 to 24 of 100 measured, none with every block mapped.
_GAPS = 0.15
_RUNTIME = 300 << 20  # of every further process: the interpreter, torch and its threads
_LONGEST_PROBE = 2048  # tokens; what a block keeps grows with the tokens of a row, or faster on the plain path


@dataclass(frozen=True)
class StepLoad:
    """What a step computes at one time, and how.

    Attributes:
        n_rows: Rows of a micro-batch, over all processes.
        row: Tokens of a row.
        n_micro_batches: Micro-batches whose gradients are added up in a step.
        dtype: Of the blocks' arithmetic.
        is_recomputed: Blocks keep their input only, and are computed again in the backward pass.
        is_saved: Checkpoints are written from a copy of weights and optimizer.
        is_rounded: Weights are rounded to few bits where they are used.
    """

    n_rows: int
    row: int
    n_micro_batches: int = 1
    dtype: torch.dtype = torch.bfloat16
    is_recomputed: bool = False
    n_processes: int = 1
    is_saved: bool = True
    is_rounded: bool = False


@dataclass(frozen=True)
class TrainingBytes:
    """The parts of a run's memory in bytes.

    Attributes:
        gradients: Of all weights, and once more of the table, which is embedding and head.
        activations: What the blocks keep for the backward pass, with its largest temporaries.
        loss: Scores of a chunk of tokens and what is made of them.
        others: Further processes, the copy that checkpoints are written from, libraries, and the
            allocator's gaps.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    others: int

    @property
    def total(self) -> int:
        """All parts together, which is more than exists at any one time."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {in_gb(size)}" for name, size in vars(self).items() if size)


@dataclass(frozen=True)
class _RowBytes:
    """What one row of tokens costs: kept by all blocks, by the largest, and as input of all of them."""

    kept: int
    largest: int
    inputs: int
    passing: int


def training_bytes(config: ModelConfig, spec: OptimizerSpec, *, load: StepLoad) -> TrainingBytes:
    """Return what a run needs; what blocks keep is counted on a pass through one of each kind."""
    return _add_up(config, spec, load=load, of_row=_row_bytes(config, load))


def check_memory(
    config: ModelConfig, spec: OptimizerSpec, *, load: StepLoad, available: int | None = None
) -> TrainingBytes:
    """Return what a run needs, or refuse one that does not fit before anything is allocated.

    Args:
        available: Bytes that can be taken; what the system or the container has left by default.

    Raises:
        MemoryLimitError: It does not fit; the setting that helps is named.
    """
    available = available_bytes() if available is None else available
    needs, of_row = partial(_add_up, config, spec), _RowBytes(0, 0, 0, 0)
    remedies = _remedies(load)
    # A network beyond the machine, even without activations, must not be tried on it.
    if min(needs(load=other, of_row=of_row).total for other in (load, *(other for other, _ in remedies))) <= available:
        of_row = _row_bytes(config, load)
        if (needed := needs(load=load, of_row=of_row)).total <= available:
            return needed
    good = (words for other, words in remedies if needs(load=other, of_row=of_row).total <= available)
    advice = next(good, "No setting would do: choose a smaller network or a machine with more.")
    needed = needs(load=load, of_row=of_row)
    raise MemoryLimitError(
        f"training must fit into memory; got {in_gb(needed.total)} needed ({needed}) and {in_gb(available)} free. "
        f"{advice}"
    )


def _remedies(load: StepLoad) -> list[tuple[StepLoad, str]]:
    """Return changes that need less memory, what costs least first, with the words for them."""
    remedies, rows = [], load.n_rows
    while rows // 2 >= load.n_processes:
        rows //= 2
        parts = -(-load.n_rows * load.n_micro_batches // rows)
        smaller = replace(load, n_rows=rows, n_micro_batches=parts)
        remedies.append((smaller, f"Set micro_batch_tokens to {rows * load.row}; the step stays the same."))
    again = replace(load, is_recomputed=True)
    remedies.append((again, "Set is_recomputed, for a third more arithmetic."))
    if remedies[:-1]:
        both = replace(remedies[-2][0], is_recomputed=True)
        remedies.append((both, f"Set is_recomputed and micro_batch_tokens to {rows * load.row}."))
    if load.n_processes > 1:
        alone = replace(load, n_rows=1, n_micro_batches=load.n_rows, n_processes=1, is_recomputed=True)
        remedies.append((alone, f"Use one process, is_recomputed and micro_batch_tokens of {load.row}."))
    return remedies


def _add_up(config: ModelConfig, spec: OptimizerSpec, *, load: StepLoad, of_row: _RowBytes) -> TrainingBytes:
    table = config.vocab_size * config.d_model
    n_matrices = sum(w.numel() for name, w in _shapes(config) if w.ndim == 2 and name.startswith("layers."))
    weights, others = config.n_params * _FLOAT, load.n_processes - 1
    # Muon keeps one moment of a weight, AdamW two.
    moments = 2 * config.n_params - (n_matrices if spec.optimizer == "muon" else 0)
    n_tables = 1 if load.n_micro_batches == 1 else 2
    kept = of_row.inputs + of_row.largest if load.is_recomputed else of_row.kept
    tokens = -(-load.n_rows // load.n_processes) * load.row
    # The rounded table, its gradient, and what they are made from.
    rounding = 4 * table * _FLOAT * load.n_processes if load.is_rounded else 0
    parts = TrainingBytes(
        weights=weights,
        gradients=(config.n_params + n_tables * table) * _FLOAT,
        optimizer=moments * _FLOAT,
        activations=load.n_rows * (kept + of_row.passing),
        loss=load.n_processes * scratch_bytes(tokens, config.vocab_size, width=config.d_model, dtype=load.dtype),
        # A further process has gradients of its own and hands them over in shared memory.
        others=others * (2 * weights + _RUNTIME) + (weights + moments * _FLOAT if load.is_saved else 0) + rounding,
    )
    return replace(parts, others=parts.others + _LIBRARIES + int(_GAPS * parts.total))


def _row_bytes(config: ModelConfig, load: StepLoad) -> _RowBytes:
    n_tokens = min(load.row, _LONGEST_PROBE)
    of_kind = {spec: _kept_by(config, spec, n_tokens, load.dtype) for spec in set(map(_alone, config.layers))}
    kept = [of_kind[_alone(spec)] for spec in config.layers]
    state = n_tokens * config.d_model * load.dtype.itemsize
    # The backward pass of a feed-forward makes three gradients of its width.
    passing = 3 * n_tokens * max(spec.d_ff for spec in config.layers) * load.dtype.itemsize + 4 * state
    sizes = (sum(kept), max(kept), len(kept) * state, passing)
    return _RowBytes(*(size * load.row // n_tokens for size in sizes))


def _alone(spec: LayerSpec) -> LayerSpec:
    """Return a block without the layer it shares keys with, and of one kind whatever its angles."""
    return replace(spec, kv_source=None, rope_theta=10_000.0, rope_factor=1.0)


def _kept_by(config: ModelConfig, spec: LayerSpec, n_tokens: int, dtype: torch.dtype) -> int:
    """Return what one block keeps of a row: what two of them keep more than one."""
    one, two = (_kept(config.replace(layers=(spec,) * n), n_tokens, dtype) for n in (1, 2))
    return two - one


def _kept(config: ModelConfig, n_tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes that autograd holds after a forward pass over one row, weights left out."""
    few = config.replace(vocab_size=8, bos_id=0, eos_ids=(0,), pad_id=0)
    network = Transformer(few)
    network.load_state_dict(initial_weights(few, seed=0))
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = torch.arange(n_tokens)[None]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = network.hidden(row[0] % 8, Layout.rows(row * 0, row), dtype=dtype)
    for weight in network.parameters():
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    del hidden
    return sum(sizes.values())


def _shapes(config: ModelConfig) -> list[tuple[str, Tensor]]:
    return list(Transformer(config, device="meta").named_parameters())
