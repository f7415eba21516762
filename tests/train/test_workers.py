"""Several processes give the gradient that one gives."""

import multiprocessing as mp
from functools import partial

import pytest
import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import accumulate
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.workers import Workers

_LAYER = LayerSpec("local", 2, 1, 8, 24, attn_scale=8**-0.5, window=4, attn_softcap=3.0)
CONFIG = ModelConfig("gemma2", 64, 16, 32, (_LAYER,), final_softcap=5.0)
BUILD = partial(next_token_loss, CONFIG, LossSpec(CONFIG.final_softcap))


def batch(n_rows: int, seed: int) -> Batch:
    ids = torch.randint(1, 64, (n_rows, 17), generator=torch.Generator().manual_seed(seed))
    row = torch.arange(16).expand(n_rows, 16)
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(n_rows, 16, dtype=torch.bool), row * 0, row)


def test_two_processes_give_the_gradient_of_one() -> None:
    weights = initial_weights(CONFIG, seed=0)
    batches = [batch(4, 1), batch(2, 2)]
    total = accumulate(weights, batches, BUILD(), 0.125)
    wanted = {name: weight.grad for name, weight in weights.items()}
    workers = Workers(weights, BUILD, n_processes=2)
    for _ in range(2):  # the second time without what the first left behind
        for weight in weights.values():
            weight.grad = None
        assert workers.accumulate(weights, batches, BUILD(), 0.125) == pytest.approx(total, rel=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        weights["norm.weight"].add_(1.0)  # an optimizer's update in place reaches the other process
    changed = accumulate(weights, batches, BUILD(), 0.125)
    assert changed != pytest.approx(total, rel=1e-3)
    assert workers.accumulate(weights, batches, BUILD(), 0.125) == pytest.approx(changed, rel=1e-6)
    with pytest.raises(TrainingError, match="multiple of 2 processes; got 3"):
        workers.accumulate(weights, [batch(3, 1)], BUILD(), 1.0)


def test_closed_workers_end() -> None:
    weights = initial_weights(CONFIG, seed=0)
    before = set(mp.active_children())
    workers = Workers(weights, BUILD, n_processes=2)
    (child,) = set(mp.active_children()) - before
    workers.close()
    child.join(600)
    assert child.exitcode == 0
