"""Steps that must not be learned from: not finite, or far above the last ones."""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.train.guard import HISTORY, MAX_SKIPPED, is_outlier
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Budget, TrainState, fit, train_step
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers
from packed_rows import packed, stacked
from tiny import tiny_config

CONFIG = tiny_config("gemma2")
SPEC = OptimizerSpec(matrix_rate=1e-4, other_rate=1e-4)
LOSS = next_token_loss(CONFIG, LossSpec(CONFIG.final_softcap))
ROWS = stacked([packed([20, 12], row=32, seed=seed) for seed in range(3)])


def new_state() -> TrainState:
    weights = initial_weights(CONFIG, seed=0)
    return TrainState(weights, build_optimizers(weights, SPEC))


def everything(state: TrainState) -> dict[str, Tensor]:
    """Return copies of weights and optimizer state by name."""
    tensors = {name: weight.detach().clone() for name, weight in state.weights.items()}
    for name, optimizer in state.optimizers.items():
        for index, parts in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{part}": value.clone() for part, value in parts.items()}
    return tensors


def assert_untouched(state: TrainState, before: dict[str, Tensor]) -> None:
    after = everything(state)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(weight.grad is None for weight in state.weights.values())


def spoiled(row: int, how: Callable[[Tensor], Tensor]) -> Callable[[Mapping[str, Tensor], Batch], Tensor]:
    """Return a loss that is spoiled for the batch that holds this row of ROWS."""
    first = ROWS.token_ids[row, :4]

    def loss_fn(weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        loss = LOSS(weights, batch)
        return how(loss) if (batch.token_ids[:, :4] == first).all(1).any() else loss

    return loss_fn


def history(state: TrainState, n_steps: int = HISTORY) -> None:
    """Fill in what steps on ROWS look like."""
    report = train_step(state, [ROWS], LOSS, spec=SPEC)
    noise = random.Random(0)
    state.recent = [
        [report.nll + noise.gauss(0, 0.01), report.grad_norm + noise.gauss(0, 0.01)] for _ in range(n_steps)
    ]


def test_not_finite_loss_names_step_documents_and_stops_before_the_update() -> None:
    state = new_state()
    train_step(state, [ROWS], LOSS, spec=SPEC)
    before = everything(state)
    named = replace(ROWS, sources=("tales", "letters", "recipes"))
    with pytest.raises(
        TrainingError,
        match=r"got nan and nan in step 1, first in the gradient of 'embed_tokens.weight', with "
        r"row 2 of micro-batch 1 \(recipes: documents 0 to 1\)\. ",
    ):
        train_step(state, [packed([32], row=32, seed=9), named], spoiled(2, lambda loss: loss * math.nan), spec=SPEC)
    assert_untouched(state, before)
    assert (state.step, state.n_tokens, state.n_skipped) == (1, 96, 0)


def test_endless_gradient_of_a_finite_loss_stops_too() -> None:
    state = new_state()
    before = everything(state)

    def steep(loss: Tensor) -> Tensor:
        zero = loss - loss.detach()
        return loss + zero.abs().sqrt()  # of slope 0 times infinity at 0

    with pytest.raises(TrainingError, match=r"got \d+\.\d+ and nan in step 0.*with row 1 of micro-batch 0"):
        train_step(state, [ROWS], spoiled(1, steep), spec=SPEC)
    assert_untouched(state, before)


def test_bad_weight_is_named_before_the_gradients_it_spoils() -> None:
    state = new_state()
    state.weights["layers.1.mlp.up_proj.weight"].data[0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"first in weight 'layers.1.mlp.up_proj.weight', with row 0 of.*row 2 of"):
        train_step(state, [ROWS], LOSS, spec=SPEC)


def test_first_bad_gradient_in_the_networks_order_is_named() -> None:
    state = new_state()
    for name in ("layers.2.mlp.down_proj.weight", "layers.1.mlp.up_proj.weight"):
        state.weights[name].register_hook(lambda grad: grad * math.nan)
    with pytest.raises(TrainingError, match=r"first in the gradient of 'layers.1.mlp.up_proj.weight'"):
        train_step(state, [ROWS], LOSS, spec=SPEC)


def test_only_some_rows_are_named() -> None:
    state = new_state()
    rows = stacked([packed([32], row=32, seed=seed) for seed in range(7)])
    with pytest.raises(TrainingError, match=r"row 3 of micro-batch 0 \(documents 0 to 0\) and 3 more rows\."):
        train_step(state, [rows], lambda weights, batch: LOSS(weights, batch) * math.nan, spec=SPEC)


def test_value_beyond_six_sigma_is_an_outlier() -> None:
    """Values of 2 and 4 by turns have a mean of 3 and a sigma of 1."""
    recent = [[2.0, 20.0], [4.0, 40.0]] * 64
    assert not is_outlier(recent, (8.99, 89.9))
    assert is_outlier(recent, (9.01, 30.0))
    assert is_outlier(recent, (3.0, 90.1))


def test_low_values_are_no_outliers() -> None:
    assert not is_outlier([[2.0, 20.0], [4.0, 40.0]] * 64, (-100.0, 0.0))


def test_short_history_judges_nothing() -> None:
    recent = [[2.0, 20.0], [4.0, 40.0]]
    assert not is_outlier([], (1e9, 1e9))
    assert not is_outlier((recent * 32)[:63], (1e9, 1e9))
    assert is_outlier(recent * 32, (1e9, 1e9))


def test_rounding_of_a_curve_at_rest_is_no_outlier() -> None:
    assert not is_outlier([[3.0, 1.0]] * 128, (3.001, 1.001))
    assert is_outlier([[3.0, 1.0]] * 128, (3.03, 1.0))


@pytest.mark.parametrize("how", [lambda loss: loss + 1e4, lambda loss: loss + 100 * (loss - loss.detach())])
def test_step_that_stands_out_is_skipped_and_counted(how: Callable[[Tensor], Tensor]) -> None:
    """The first has a high loss and a usual gradient, the second the reverse."""
    state = new_state()
    history(state)
    before, recent = everything(state), list(state.recent)
    report = train_step(state, [ROWS], spoiled(1, how), spec=SPEC)
    assert (report.is_skipped, report.n_skipped, report.step, report.n_tokens) == (True, 1, 2, 192)
    assert_untouched(state, before)
    assert state.recent == recent
    report = train_step(state, [ROWS], LOSS, spec=SPEC)
    assert (report.is_skipped, report.n_skipped, report.step, state.n_skipped_in_row) == (False, 1, 3, 0)
    assert not torch.equal(state.weights["norm.weight"], before["norm.weight"])


def test_history_is_of_the_last_updates() -> None:
    state = new_state()
    history(state)
    second = state.recent[1]
    report = train_step(state, [ROWS], LOSS, spec=SPEC)
    assert (len(state.recent), state.recent[0], state.recent[-1]) == (128, second, [report.nll, report.grad_norm])


def test_run_that_only_skips_is_stopped() -> None:
    state = new_state()
    history(state)
    seen: list[bool] = []
    with pytest.raises(TrainingError, match=r"got \d+ and [\d.]+ in step 16, the last of 16 skipped in a row"):
        fit(
            state,
            lambda _state, _progress: [ROWS],
            spoiled(0, lambda loss: loss + 1e5),
            spec=SPEC,
            budget=Budget(steps=100),
            watchers=[lambda _, report: seen.append(report.is_skipped)],
        )
    assert seen == [True] * (MAX_SKIPPED - 1)


def test_guard_goes_on_where_a_json_file_left_it() -> None:
    """Twenty steps, one of them skipped, with and without all facts written down and read at every step."""
    through, resumed = new_state(), new_state()
    for state in (through, resumed):
        history(state, 70)
        for step in range(20):
            loss_fn = spoiled(1, lambda loss: loss + 1e4) if step == 7 else LOSS
            train_step(state, [ROWS], loss_fn, spec=SPEC)
            if state is resumed:
                facts = {
                    f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("weights", "optimizers")
                }
                for name, value in json.loads(json.dumps(facts)).items():
                    setattr(state, name, value)
    assert (resumed.n_skipped, resumed.recent) == (through.n_skipped, through.recent) == (1, through.recent)
    assert_untouched(resumed, everything(through))
