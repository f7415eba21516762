import pytest
import torch
from torch import Tensor

from against_plain import DTYPES, ROWS, error, numbers
from gemsmith.errors import TrainingError
from gemsmith.kernels import fused_loss


def plain(logits: Tensor, targets: Tensor, softcap: float | None, z_weight: float) -> tuple[Tensor, Tensor]:
    """Return loss and gradient by the definition, in the dtype of the logits; train stands below kernels."""
    leaf = logits.detach().clone().requires_grad_()
    capped = leaf if softcap is None else softcap * torch.tanh(leaf / softcap)
    normalizer = capped.logsumexp(-1)
    loss = (normalizer - capped.gather(-1, targets[:, None])[:, 0] + z_weight * normalizer.square()).sum()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 15, 96, 257, 1000])
@pytest.mark.parametrize("n_rows", ROWS)
def test_loss_and_gradient_equal_the_definition(
    isa: str, n_rows: int, width: int, dtype: torch.dtype, softcap: float | None, z_weight: float
) -> None:
    logits = numbers(n_rows, width, seed=1, dtype=dtype, size=15.0)
    targets = torch.arange(n_rows) * 7 % width
    targets[-1] = width - 1
    loss, grad = plain(logits.double(), targets, softcap, z_weight)
    ours, our_grad = fused_loss.loss_and_gradient(logits.clone(), targets, softcap, z_weight)
    torch.testing.assert_close(ours.double(), loss, rtol=1e-5, atol=1e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(our_grad.double(), grad, rtol=1e-4, atol=1e-6)
    else:
        assert error(our_grad, grad) <= 1.1 * error(grad.to(dtype), grad) + 1e-6


def test_gradient_takes_the_place_of_the_scores(isa: str) -> None:
    logits = numbers(4, 19, seed=2)
    _, grad = fused_loss.loss_and_gradient(logits, torch.zeros(4, dtype=torch.int64), None, 0.0)
    assert grad.data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_so(isa: str, dtype: torch.dtype, softcap: float | None) -> None:
    logits = numbers(3, 33, seed=3, dtype=dtype)
    logits[1, 32] = float("nan")
    loss, grad = fused_loss.loss_and_gradient(logits, torch.tensor([0, 1, 2]), softcap, 1e-4)
    assert loss.isnan()
    assert grad[1].isnan().all()
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart_neither_overflow_nor_vanish(isa: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=dtype)
    loss, grad = fused_loss.loss_and_gradient(logits, torch.tensor([1, 0]), None, 0.0)
    torch.testing.assert_close(loss, torch.tensor(3.0).log(), rtol=1e-3, atol=1e-3)
    wanted = torch.tensor([[0.0, 0.0, 0.0], [-2 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(grad.float(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("bad", [-1, 19])
def test_target_outside_the_vocabulary_is_refused(isa: str, bad: int) -> None:
    logits = numbers(2, 19, seed=4)
    before = logits.clone()
    with pytest.raises(TrainingError, match=f"must lie in 0 to 18; got {bad}"):
        fused_loss.loss_and_gradient(logits, torch.tensor([3, bad]), None, 0.0)
    assert torch.equal(logits, before)


def test_loss_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    results = []
    before = torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        logits = numbers(70, 130, seed=5, dtype=torch.bfloat16, size=5.0)
        results.append(fused_loss.loss_and_gradient(logits, torch.arange(70), 30.0, 1e-4))
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_only_what_it_can_do_is_given_to_it() -> None:
    logits = numbers(4, 8, seed=6)
    assert not fused_loss.is_suitable(logits.double())
    assert not fused_loss.is_suitable(logits[:, :4])
    assert not fused_loss.is_suitable(logits[0])
