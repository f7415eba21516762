import copy

import pytest
import torch
from torch import Tensor

from against_plain import DTYPES, numbers
from gemsmith.kernels import fused_adamw, native
from gemsmith.kernels.fused_adamw import AdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.nn.Parameter(numbers(*shape, seed=i)) for i, shape in enumerate(shapes)]


def run(optimizer: torch.optim.Optimizer, n_steps: int, first: int = 0) -> None:
    """Take steps with the same gradients whoever takes them."""
    for step in range(first, first + n_steps):
        for weight in optimizer.param_groups[0]["params"]:
            weight.grad = numbers(*weight.shape, seed=100 + step)
        optimizer.step()


SHAPES = ((1,), (17,), (33, 5), (257,), (3, 1000))


def test_steps_equal_torchs(isa: str) -> None:
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    mine, other = AdamW(ours, **SETTINGS), torch.optim.AdamW(theirs, **SETTINGS)
    run(mine, 5)
    run(other, 5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(mine.state[a][name], other.state[b][name], rtol=1e-6, atol=1e-7)
    assert mine.state_dict()["state"][0].keys() == other.state_dict()["state"][0].keys()
    assert mine.state_dict()["param_groups"][0].keys() == other.state_dict()["param_groups"][0].keys()


@pytest.mark.parametrize("order", [(AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW)])
def test_either_goes_on_from_the_others_state(isa: str, order: tuple[type, type]) -> None:
    weights, whole = parameters(*SHAPES), parameters(*SHAPES)
    run(torch.optim.AdamW(whole, **SETTINGS), 4)
    first = order[0](weights, **SETTINGS)
    run(first, 2)
    second = order[1](weights, **SETTINGS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, 2, first=2)
    for a, b in zip(weights, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_torch_learns_of_the_change(isa: str) -> None:
    weights = parameters(*SHAPES)
    before = [weight._version for weight in weights]
    product = (weights[0] * weights[0]).sum()
    run(AdamW(weights, **SETTINGS), 1)
    assert all(weight._version > n for weight, n in zip(weights, before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_gradient_is_scaled_but_not_changed(isa: str) -> None:
    (ours,), (theirs,) = parameters((33, 5)), parameters((33, 5))
    grad = numbers(33, 5, seed=9)
    ours.grad, theirs.grad = grad.clone(), grad * 0.25
    AdamW([ours], **SETTINGS).step(grad_scale=0.25)
    torch.optim.AdamW([theirs], **SETTINGS).step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.grad, grad)


@pytest.mark.parametrize("is_half_suitable", [False, True])
def test_what_the_kernel_does_not_serve_torch_does(is_half_suitable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = ([torch.nn.Parameter(numbers(6, 4, seed=s).double()) for s in (1, 2)] for _ in range(2))
    if is_half_suitable:
        ours[0], theirs[0] = (torch.nn.Parameter(x.detach().float()) for x in (ours[0], theirs[0]))
    else:
        monkeypatch.setattr(fused_adamw, "is_suitable", lambda *_: False)
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = numbers(6, 4, seed=3).to(mine.dtype)
        other.grad = mine.grad * 0.5
    AdamW(ours, **SETTINGS).step(grad_scale=0.5)
    torch.optim.AdamW(theirs, **SETTINGS).step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
        assert mine.grad is not None
        assert torch.equal(mine.grad, numbers(6, 4, seed=3).to(mine.dtype))


def test_weights_without_a_gradient_stay(isa: str) -> None:
    ours = parameters((5,), (5,))
    before = ours[1].detach().clone()
    ours[0].grad = torch.ones(5)
    AdamW(ours, **SETTINGS).step()
    assert torch.equal(ours[1], before)


def test_closure_is_called_with_gradients_on(isa: str) -> None:
    (weight,) = parameters((5,))

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert AdamW([weight], **SETTINGS).step(closure).detach() > 0
    assert weight.grad is not None


def test_what_is_not_a_number_stays_so(isa: str) -> None:
    (weight,) = parameters((33,))
    weight.grad = torch.ones(33)
    weight.grad[32] = float("nan")
    AdamW([weight], **SETTINGS).step()
    assert weight.isnan().tolist() == [False] * 32 + [True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_norm_is_exact(isa: str, dtype: torch.dtype) -> None:
    tensors = [numbers(n, seed=n, dtype=dtype) for n in (1, 17, 70_001)]
    wanted = sum(float(x.double().square().sum()) for x in tensors)
    assert fused_adamw.squared_norm(tensors) == pytest.approx(wanted, rel=1e-13)
    assert fused_adamw.squared_norm([numbers(8, 9, seed=1).T]) > 0
    tensors[2][70_000] = float("nan")
    assert fused_adamw.squared_norm(tensors) != fused_adamw.squared_norm(tensors)


def test_large_gradients_keep_a_finite_norm(isa: str) -> None:
    """Squares of float32 beyond 1e19 overflow float32, not float64."""
    assert fused_adamw.squared_norm([torch.full((20,), 1e30)]) == pytest.approx(2e61, rel=1e-6)


def test_without_a_library_torch_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    ours, theirs = parameters((17,)), parameters((17,))
    run(AdamW(ours, **SETTINGS), 2)
    run(torch.optim.AdamW(theirs, **SETTINGS), 2)
    assert torch.equal(ours[0], theirs[0])
    assert fused_adamw.squared_norm([torch.ones(4)]) == 4.0
