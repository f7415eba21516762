"""Where the gradients of a run come from: one process or several, the dense network or the rounded one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import SCALE_DTYPE, Scheme, rounded
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.options import Compute
from gemsmith.recipes.recipe import QuantizationSpec, Recipe
from gemsmith.recipes.schemes import check_schemes, parse_scheme, uniform
from gemsmith.train.loop import Accumulate, Budget, LossFn, StepReport, TrainState, accumulate
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.workers import Workers

Schemes = Mapping[str, Scheme]


def schemes_of(spec: QuantizationSpec | None, config: ModelConfig) -> Schemes:
    """Return what every module is trained for, by name; nothing where a recipe asks for none.

    Raises:
        ConfigError: There is no such scheme, it does not fit the network, or nothing at all would be rounded.
    """
    if spec is None:
        return {}
    network = Transformer(config, device="meta")
    schemes = uniform(network, linears=parse_scheme(spec.scheme), table=parse_scheme(spec.embedding))
    if not schemes:
        raise ConfigError(
            f"[quantization] must round the linears or the embedding; got {spec.scheme!r} and {spec.embedding!r}. "
            "Choose int4 or int8, or leave the section out."
        )
    check_schemes(network, schemes)
    return schemes


class Gradients:
    """Adds up gradients as the loop asks for them, and knows from when on the network is rounded.

    Rounding begins at a share of the run, so a run that goes on stands where it stood. What was remembered
    of earlier losses is forgotten with the step before it, for the rounded network's are higher.
    """

    def __init__(self, recipe: Recipe, config: ModelConfig, compute: Compute) -> None:
        spec = recipe.quantization
        self.start = 1.0 if spec is None else spec.start
        self.schemes = schemes_of(spec, config)
        self._compute = compute
        loss = LossSpec(config.final_softcap, recipe.optimizer.z_weight)
        flags = {name: getattr(compute, name) for name in ("dtype", "is_compiled", "is_recomputed")}
        self._builders = [partial(next_token_loss, config, loss, schemes=s, **flags) for s in (None, self.schemes)]
        self._losses: list[LossFn | None] = [None, None]
        self._workers: tuple[bool, Workers] | None = None
        self._was_dense = False

    def is_rounded(self, state: TrainState, budget: Budget) -> bool:
        """Tell whether the next step is one of the rounded network."""
        return bool(self.schemes) and budget.progress(state) >= self.start

    def loss(self, is_rounded: bool = False) -> LossFn:
        """Return the loss of the network, dense or rounded."""
        found = self._losses[is_rounded]
        if found is None:
            found = self._losses[is_rounded] = self._builders[is_rounded]()
        return found

    def accumulate(self, state: TrainState, budget: Budget) -> Accumulate:
        """Return the function that the loop calls in every step."""

        def add_up(weights: Mapping[str, Tensor], micro_batches: Sequence[Batch], _loss: LossFn, scale: float) -> float:
            is_rounded = self.is_rounded(state, budget)
            self._was_dense = not is_rounded
            return self._adder(is_rounded, state)(weights, micro_batches, self.loss(is_rounded), scale)

        return add_up

    def watcher(self, budget: Budget) -> Callable[[TrainState, StepReport], None]:
        """Return who forgets the losses of the dense network after its last step."""

        def forget(state: TrainState, _report: StepReport) -> None:
            if self._was_dense and self.is_rounded(state, budget):
                state.recent = []

        return forget

    def seen(self, state: TrainState, budget: Budget) -> Mapping[str, Tensor]:
        """Return the weights as the network would be given away now, in float32."""
        if not self.is_rounded(state, budget):
            return state.weights
        return {name: self._as_stored(name, weight.detach()) for name, weight in state.weights.items()}

    def _as_stored(self, name: str, weight: Tensor) -> Tensor:
        scheme = self.schemes.get(name.removesuffix(".weight"))
        return weight if scheme is None else rounded(weight, scheme, scale_dtype=SCALE_DTYPE)

    def _adder(self, is_rounded: bool, state: TrainState) -> Accumulate:
        if self._compute.n_processes == 1:
            return accumulate
        if self._workers is None or self._workers[0] != is_rounded:
            torch.set_num_threads(1)
            if self._workers is not None:
                self._workers[1].close()
            workers = Workers(state.weights, self._builders[is_rounded], n_processes=self._compute.n_processes)
            self._workers = (is_rounded, workers)
        return self._workers[1].accumulate
