"""The smallest run with everything a checkpoint must hold, for tests of saving and stopping."""

import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Budget, TrainState, fit
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers

_LAYER = LayerSpec("local", 2, 1, 8, 24, attn_scale=8**-0.5, window=4, attn_softcap=3.0)
CONFIG = ModelConfig("gemma2", 64, 16, 32, (_LAYER,), final_softcap=5.0)
SPEC = OptimizerSpec(matrix_rate=0.01, other_rate=0.01, warmup_steps=2, decay_share=0.5)
LOSS = next_token_loss(CONFIG, LossSpec(CONFIG.final_softcap))
IDENTITY = {"model": "0123456789abcdef", "data": "aa", "vocabulary": "bb"}


def new_state() -> TrainState:
    weights = initial_weights(CONFIG, seed=0)
    return TrainState(weights, build_optimizers(weights, SPEC))


def batches(state: TrainState, _progress: float) -> list[Batch]:
    """Return two micro-batches that depend on the step, and on torch's random state."""
    generator = torch.Generator().manual_seed(state.step)
    row = torch.arange(16).expand(2, 16)
    made = []
    for _ in range(2):
        ids = torch.randint(1, 64, (2, 17), generator=generator)
        ids[:, 8] = torch.randint(1, 64, (2,))
        made.append(Batch(ids[:, :-1], ids[:, 1:], torch.ones(2, 16, dtype=torch.bool), row * 0, row))
    return made


def train(state: TrainState, *, until: int, watchers: tuple = ()) -> TrainState:
    return fit(state, batches, LOSS, spec=SPEC, budget=Budget(steps=until), watchers=watchers)
