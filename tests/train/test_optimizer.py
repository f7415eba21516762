"""Who steps which weights, at which rates; impossible settings are refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gemsmith.errors import TrainingError
from gemsmith.train.optimizer import OptimizerSpec, build_optimizers, rate_factor, update

SPEC = OptimizerSpec(matrix_rate=0.02, other_rate=0.01, weight_decay=0.1)


def some_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {
        "embed_tokens.weight": (20, 8),
        "layers.0.self_attn.q_proj.weight": (8, 8),
        "layers.0.input_layernorm.weight": (8,),
        "norm.weight": (8,),
    }
    weights = {name: torch.randn(shape).requires_grad_() for name, shape in shapes.items()}
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape)
    return weights


def groups(optimizers: dict[str, torch.optim.Optimizer]) -> dict[int, tuple[str, float, float]]:
    """Return optimizer, rate and decay of every weight, by its id."""
    return {
        id(weight): (name, group["lr"], group["weight_decay"])
        for name, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for weight in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_weight_has_one_optimizer_and_norms_no_decay(optimizer: str) -> None:
    weights = some_weights()
    found = groups(build_optimizers(weights, replace(SPEC, optimizer=optimizer)))
    assert [found[id(weight)] for weight in weights.values()] == [
        ("adamw", 0.01, 0.1),
        (optimizer, 0.02, 0.1),
        ("adamw", 0.01, 0.0),
        ("adamw", 0.01, 0.0),
    ]


def test_adamw_steps_as_its_paper_says() -> None:
    """First step, by hand: decay by rate times weight, then rate times the sign of the gradient."""
    weights = some_weights()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for optimizer in build_optimizers(weights, replace(SPEC, optimizer="adamw")).values():
        optimizer.step()
    for name, weight in weights.items():
        rate, decay = 0.02 if name.startswith("layers.") and weight.ndim == 2 else 0.01, 0.1 if weight.ndim == 2 else 0
        assert weight.grad is not None
        wanted = before[name] * (1 - rate * decay) - rate * weight.grad.sign()
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_scale_of_gradients_is_as_if_they_had_been_multiplied(optimizer: str) -> None:
    spec = replace(SPEC, optimizer=optimizer)
    ours, wanted = some_weights(), some_weights()
    (one, other) = build_optimizers(ours, spec), build_optimizers(wanted, spec)
    for step in range(3):
        for number, (name, weight) in enumerate(wanted.items()):
            gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(10 * step + number))
            weight.grad, ours[name].grad = gradient * 2.0**-step, gradient
        update(one.values(), factor=1.0, grad_scale=2.0**-step)
        update(other.values(), factor=1.0, grad_scale=1.0)
    assert all(torch.equal(ours[name], weight) for name, weight in wanted.items())
    assert all(weight.grad is None for weight in ours.values())


def test_rates_are_shares_of_their_peaks() -> None:
    optimizers = build_optimizers(some_weights(), SPEC)
    for factor in (0.5, 0.25):
        update(optimizers.values(), factor=factor, grad_scale=1.0)
    assert sorted({rate for _, rate, _ in groups(optimizers).values()}) == [0.0025, 0.005]


def test_schedule_of_the_spec_is_followed() -> None:
    spec = replace(SPEC, schedule="linear", warmup_steps=1, floor_share=0.5)
    assert [rate_factor(step, step / 5, spec) for step in (0, 1, 3, 5)] == pytest.approx([0.5, 1.0, 0.75, 0.5])
    assert rate_factor(3, 0.6, replace(SPEC, decay_share=0.5)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix_rate": 0.0}, "matrix_rate must be a number above 0; got 0.0"),
        ({"matrix_rate": -0.1}, "matrix_rate must be a number above 0; got -0.1"),
        ({"other_rate": math.nan}, "other_rate must be a number above 0; got nan"),
        ({"clip": 0.0}, "clip must be a number above 0; got 0.0"),
        ({"weight_decay": -0.5}, "weight_decay must be a number from 0 up; got -0.5"),
        ({"warmup_steps": -3}, "warmup_steps must be a number from 0 up; got -3"),
        ({"z_weight": math.inf}, "z_weight must be a number from 0 up; got inf"),
        ({"decay_share": 1.5}, "decay_share must lie above 0 and up to 1; got 1.5"),
        ({"floor_share": 1.0}, "floor_share must lie from 0 to below 1; got 1.0"),
        ({"optimizer": "sgd"}, "optimizer must be one of muon, adamw; got 'sgd'"),
        ({"schedule": "stairs"}, "schedule must be one of cosine, linear, wsd; got 'stairs'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(SPEC, **change)
