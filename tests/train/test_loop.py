"""One step and the loop around it: accumulation, schedules, budgets, refusals."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.mixture import Batch
from gemsmith.errors import TrainingError
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.train.initial import initial_weights
from gemsmith.train.loop import Budget, Clock, TrainState, fit, train_step
from gemsmith.train.loss import LossSpec
from gemsmith.train.next_token import next_token_loss
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers, rate_factor

_LOCAL = LayerSpec("local", 4, 2, 8, 24, attn_scale=8**-0.5, window=5, attn_softcap=3.0)
CONFIG = ModelConfig("gemma2", 64, 16, 64, (_LOCAL, replace(_LOCAL, kind="global", window=None)), final_softcap=5.0)
SPEC = OptimizerSpec(matrix_rate=0.01, other_rate=0.01)
LOSS = next_token_loss(CONFIG, LossSpec(CONFIG.final_softcap, chunk=16))


def packed(lengths: list[int], row: int, seed: int = 0) -> Batch:
    """Return one row of documents of random ids, with filler at its end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (1, row), generator=generator)
    targets = torch.randint(1, 64, (1, row), generator=generator)
    mask = torch.zeros(1, row, dtype=torch.bool)
    documents, positions = torch.full((1, row), len(lengths)), torch.arange(row)[None].clone()
    start = 0
    for number, length in enumerate(lengths):
        documents[0, start : start + length] = number
        positions[0, start : start + length] = torch.arange(length)
        mask[0, start : start + length] = True
        start += length
    return Batch(ids, targets, mask, documents, positions)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Cut one document out of a row, as a row of its own."""
    ids, targets, mask = (t[:, start:stop] for t in (batch.token_ids, batch.targets, batch.loss_mask))
    return Batch(ids, targets, mask, torch.zeros_like(ids), torch.arange(stop - start)[None])


def new_state(seed: int = 0) -> TrainState:
    weights = initial_weights(CONFIG, seed=seed)
    return TrainState(weights, build_optimizers(weights, SPEC))


def gradients(weights: Mapping[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
    for batch in batches:
        LOSS(weights, batch).backward()
    grads = {name: w.grad.clone() for name, w in weights.items() if w.grad is not None}
    for weight in weights.values():
        weight.grad = None
    return grads


def test_packed_loss_equals_unpacked_loss() -> None:
    weights = initial_weights(CONFIG, seed=1)
    batch = packed([17, 9, 12], row=40)
    apart = [part(batch, 0, 17), part(batch, 17, 26), part(batch, 26, 38)]
    together = LOSS(weights, batch)
    assert float(together.detach()) == pytest.approx(sum(float(LOSS(weights, b).detach()) for b in apart), rel=1e-6)
    for name, grad in gradients(weights, [batch]).items():
        torch.testing.assert_close(grad, gradients(weights, apart)[name], rtol=1e-4, atol=1e-5)


def test_rows_in_slices_equal_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = initial_weights(CONFIG, seed=1)
    batch = packed([90, 30], row=128)
    whole = LOSS(weights, batch).detach()
    monkeypatch.setattr("gemsmith.model.attention.QUERIES_PER_BLOCK", 32)
    torch.testing.assert_close(LOSS(weights, batch).detach(), whole, rtol=1e-6, atol=1e-5)


def test_no_gradient_reaches_the_future_or_another_document() -> None:
    network, batch = Transformer(CONFIG), packed([20, 20], row=40)
    network.load_state_dict(initial_weights(CONFIG, seed=1))
    table = network.embed_tokens.weight
    torch.nn.init.normal_(table)
    hidden = network.hidden(torch.arange(40), Layout.rows(batch.documents, batch.positions))
    hidden[29].square().sum().backward()
    reached = table.grad.abs().sum(-1) > 0  # pyright: ignore[reportOptionalMemberAccess]
    assert reached[20:30].all()
    assert not reached[:20].any()
    assert not reached[30:].any()


def test_accumulation_equals_the_big_batch_whatever_the_sizes() -> None:
    batches = [packed([30], row=32, seed=1), packed([3], row=32, seed=2), packed([20, 7], row=32, seed=3)]
    big = Batch(*(torch.cat([getattr(b, f) for b in batches]) for f in Batch.__dataclass_fields__))
    apart, together = new_state(), new_state()
    reports = [train_step(state, micro, LOSS, spec=SPEC) for state, micro in ((apart, batches), (together, [big]))]
    assert reports[0].nll == pytest.approx(reports[1].nll, rel=1e-6)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-5)
    # Only the tables AdamW and Muon step from must agree; their first step divides by tiny gradients.
    assert apart.n_tokens == together.n_tokens == 96


def test_learns_one_batch_by_heart() -> None:
    state, batch = new_state(), packed([32], row=32)
    first = train_step(state, [batch], LOSS, spec=SPEC).nll
    fit(state, lambda _s, _p: [batch], LOSS, spec=SPEC, budget=Budget(steps=60))
    assert state.step == 60
    assert float(LOSS(state.weights, batch).detach()) / 32 < first / 3


def test_not_finite_loss_stops_before_the_update() -> None:
    state, batch = new_state(), packed([32], row=32)
    state.weights["layers.1.mlp.up_proj.weight"].data[0, 0] = math.nan
    before = {name: w.detach().clone() for name, w in state.weights.items()}
    with pytest.raises(TrainingError, match=r"nan.*in step 0"):
        train_step(state, [batch], LOSS, spec=SPEC)
    assert all(torch.equal(w, before[name]) or name.endswith("up_proj.weight") for name, w in state.weights.items())


def test_step_without_targets_is_refused() -> None:
    batch = packed([32], row=32)
    with pytest.raises(TrainingError, match="got none in step 0"):
        train_step(new_state(), [replace(batch, loss_mask=batch.loss_mask & False)], LOSS, spec=SPEC)


def test_rate_rises_holds_and_falls_to_nothing() -> None:
    spec = replace(SPEC, warmup_steps=9, decay_share=0.5)
    assert [rate_factor(s, p, spec) for s, p in ((0, 0.0), (4, 0.1), (9, 0.2), (50, 0.5), (75, 0.75), (99, 1.0))] == [
        0.1, 0.5, 1.0, 1.0, 0.5, 0.0,
    ]  # fmt: skip


def test_clock_leaves_pauses_out() -> None:
    clock = Clock()
    assert [clock.counted(s) for s in [1.0] * 8] == [1.0] * 8
    assert clock.counted(600.0) == 1.0
    assert clock.counted(2.0) == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix_rate": 0.0}, "matrix_rate must be a number above 0; got 0.0"),
        ({"other_rate": math.nan}, "got nan"),
        ({"decay_share": 1.5}, "got 1.5"),
    ],
)
def test_impossible_rates_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(SPEC, **change)
