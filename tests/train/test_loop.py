"""One step and the loop around it: accumulation, clipping, budgets, refusals."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Budget, Clock, StepReport, TrainState, fit, train_step
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers
from gemsmith.train.workers import Workers
from packed_rows import packed, stacked
from tiny import tiny_config

CONFIG = tiny_config("gemma2")
SPEC = OptimizerSpec(matrix_rate=0.01, other_rate=0.01, clip=1e6)
BUILD = partial(next_token_loss, CONFIG, LossSpec(CONFIG.final_softcap, 1e-4, chunk=16))
LOSS = BUILD()
UNEQUAL = [packed([30], row=32, seed=1), packed([3], row=32, seed=2), packed([20, 7], row=32, seed=3, scored=0.5)]


def new_state(spec: OptimizerSpec = SPEC) -> TrainState:
    weights = initial_weights(CONFIG, seed=0)
    return TrainState(weights, build_optimizers(weights, spec))


def plain_state() -> TrainState:
    """Return a state whose update is the gradient itself: plain descent at a rate of 1."""
    weights = initial_weights(CONFIG, seed=0)
    descent = torch.optim.SGD([{"params": list(weights.values()), "peak": 1.0}], lr=1.0)
    return TrainState(weights, {"descent": descent})


def learned(state: TrainState, micro_batches: Sequence[Batch], **options: object) -> tuple[StepReport, Tensor]:
    """Return the report of a step and, in one row, what the optimizer was given."""
    before = torch.cat([w.detach().flatten().clone() for w in state.weights.values()])
    report = train_step(state, micro_batches, LOSS, **{"spec": SPEC, **options})  # pyright: ignore[reportArgumentType]
    return report, before - torch.cat([w.detach().flatten() for w in state.weights.values()])


def assert_same_step(ours: tuple[StepReport, Tensor], wanted: tuple[StepReport, Tensor]) -> None:
    assert ours[0].nll == pytest.approx(wanted[0].nll, rel=1e-6)
    assert ours[0].grad_norm == pytest.approx(wanted[0].grad_norm, rel=1e-6)
    assert ours[0].n_targets == wanted[0].n_targets
    assert float((ours[1] - wanted[1]).abs().max() / wanted[1].abs().max()) < 1e-6


def test_gradient_is_that_of_the_mean_over_all_targets() -> None:
    report, update = learned(plain_state(), UNEQUAL)
    weights = initial_weights(CONFIG, seed=0)
    n_targets = sum(int(batch.loss_mask.sum()) for batch in UNEQUAL)
    mean = torch.stack([LOSS(weights, batch) for batch in UNEQUAL]).sum() / n_targets
    mean.backward()
    assert report.nll == pytest.approx(float(mean.detach()), rel=1e-6)
    wanted = torch.cat(
        [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights.values()]
    )
    assert float((update - wanted).abs().max() / wanted.abs().max()) < 1e-6
    assert report.grad_norm == pytest.approx(float(wanted.norm()), rel=1e-6)
    assert (report.n_targets, report.n_tokens, report.step) == (n_targets, 96, 1)


def test_accumulation_equals_the_big_batch_also_with_a_short_last_one() -> None:
    """Micro-batches of 2, 2 and 1 rows with 30, 3 and about 13 targets in a row, against all rows at once."""
    rows = [*UNEQUAL, packed([32], row=32, seed=4), packed([5], row=32, seed=5)]
    assert len({int(batch.loss_mask.sum()) for batch in rows}) == 5
    parts = [stacked(rows[:2]), stacked(rows[2:4]), rows[4]]
    assert_same_step(learned(plain_state(), parts), learned(plain_state(), [stacked(rows)]))
    assert_same_step(learned(plain_state(), rows), learned(plain_state(), [stacked(rows)]))


def test_two_processes_make_the_step_of_one() -> None:
    rows = [stacked(UNEQUAL[:2]), stacked([UNEQUAL[2], packed([32], row=32, seed=4)])]
    state = plain_state()
    workers = Workers(state.weights, BUILD, n_processes=2)
    ours = learned(state, rows, accumulate=workers.accumulate)
    assert_same_step(ours, learned(plain_state(), [stacked(rows)]))


def test_gradient_is_clipped_by_its_whole_norm() -> None:
    free, update = learned(plain_state(), UNEQUAL)
    clipped, small = learned(plain_state(), UNEQUAL, spec=replace(SPEC, clip=free.grad_norm / 4))
    assert clipped.grad_norm == free.grad_norm
    torch.testing.assert_close(small, update / 4, rtol=1e-4, atol=1e-7)
    _, untouched = learned(plain_state(), UNEQUAL, spec=replace(SPEC, clip=free.grad_norm * 1.01))
    assert torch.equal(untouched, update)


def test_no_gradient_is_left_after_a_step() -> None:
    state = new_state()
    train_step(state, UNEQUAL, LOSS, spec=SPEC)
    assert all(weight.grad is None for weight in state.weights.values())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_learns_one_batch_by_heart(optimizer: str) -> None:
    spec = replace(SPEC, optimizer=optimizer, clip=1.0, schedule="cosine", warmup_steps=5)
    state, batch = new_state(spec), packed([32], row=32)
    reports: list[StepReport] = []
    fit(
        state,
        lambda _state, _progress: [batch],
        LOSS,
        spec=spec,
        budget=Budget(steps=60),
        watchers=[lambda _, report: reports.append(report)],
    )
    assert (state.step, len(reports)) == (60, 60)
    assert reports[-1].nll < reports[0].nll / 3
    rates = [report.rate for report in reports]
    assert max(rates) == rates[5] == 0.01
    assert rates[0] < 0.002 > rates[-1]


def test_step_without_targets_is_refused() -> None:
    batch = packed([32], row=32)
    with pytest.raises(TrainingError, match="got none in step 0"):
        train_step(new_state(), [replace(batch, loss_mask=batch.loss_mask & False)], LOSS, spec=SPEC)


@pytest.mark.parametrize(
    ("budget", "progress"),
    [
        (Budget(steps=8), 0.25),
        (Budget(seconds=40.0), 0.75),
        (Budget(tokens=2_000), 0.5),
        (Budget(steps=8, tokens=2_000), 0.5),
        (Budget(tokens=500), 1.0),
    ],
)
def test_budget_counts_steps_seconds_or_tokens(budget: Budget, progress: float) -> None:
    state = TrainState({}, {}, step=2, n_tokens=1_000, seconds=30.0)
    assert budget.progress(state) == progress


def test_run_ends_with_the_step_that_spends_its_tokens() -> None:
    state, batch = new_state(), packed([32], row=32)
    fit(state, lambda _state, _progress: [batch], LOSS, spec=SPEC, budget=Budget(tokens=70))
    assert (state.step, state.n_tokens) == (3, 96)


def test_budget_taken_away_ends_a_run() -> None:
    budget = Budget(seconds=1e9)
    budget.seconds = 0.0
    assert budget.progress(TrainState({}, {})) == 1.0


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "None"), ({"steps": 0}, "'steps': 0"), ({"tokens": -1}, "'tokens': -1"), ({"seconds": float("nan")}, "nan")],
)
def test_run_without_length_is_refused(given: dict[str, int | float], found: str) -> None:
    with pytest.raises(TrainingError, match=f"must have a length in steps, seconds or tokens, above 0; got .*{found}"):
        Budget(**given)  # pyright: ignore[reportArgumentType]


def test_clock_leaves_pauses_out() -> None:
    clock = Clock()
    assert [clock.counted(s) for s in [1.0] * 8] == [1.0] * 8
    assert clock.counted(600.0) == 1.0
    assert clock.counted(2.0) == 2.0


def test_points_of_a_step_are_reached_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []
    monkeypatch.setattr("gemsmith.train.loop.reach", reached.append)
    train_step(new_state(), UNEQUAL, LOSS, spec=SPEC)
    assert reached == ["micro_batch"] * 3 + ["before_update", "after_update"]
