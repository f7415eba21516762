"""The chunked loss equals the plain one, in value and gradient, and holds no more than a chunk of scores."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from gemsmith.train.loss import LossSpec, chunked_loss, plain_loss

_MEGABYTE = 1_000_000


def _case(softcap: float | None, chunk: int | None) -> tuple[list[Tensor], Tensor, Tensor, LossSpec]:
    torch.manual_seed(3)
    tensors = [torch.randn(37, 16), torch.randn(50, 16)]
    mask = torch.rand(37) < 0.7
    return tensors, torch.randint(0, 50, (37,)), mask, LossSpec(softcap, 1e-3, chunk)


def _both(
    tensors: list[Tensor], targets: Tensor, mask: Tensor, spec: LossSpec, *, scale: float = 1.0
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return loss, gradient of hidden and gradient of head by the chunked and by the plain loss."""
    results = []
    for function in (chunked_loss, plain_loss):
        hidden, head = (t.clone().requires_grad_() for t in tensors)
        loss = function(hidden, head, targets, loss_mask=mask, spec=spec)
        (loss * scale).backward()
        results.append((loss.detach(), hidden.grad, head.grad))
    return results


def _off(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 8, 100, None])
def test_equals_plain_loss_in_value_and_gradient(softcap: float | None, chunk: int | None, scale: float) -> None:
    for ours, plain in zip(*_both(*_case(softcap, chunk), scale=scale), strict=True):
        assert _off(ours, plain) < 1e-6


def test_gradient_is_the_slope_of_the_loss() -> None:
    """Against differences of the plain loss in float64: cap and normalizer's penalty included."""
    (hidden, head), targets, mask, spec = _case(5.0, 8)
    _, grad, _ = _both([hidden, head], targets, mask, spec)[0]
    token, h = int(mask.nonzero()[0]), 1e-5
    for place in (0, 7):
        step = torch.zeros_like(hidden, dtype=torch.float64)
        step[token, place] = h
        up, down = (
            _float64_loss(hidden.double() + sign * step, head.double(), targets, mask, spec) for sign in (1, -1)
        )
        assert float(grad[token, place]) == pytest.approx((up - down) / (2 * h), rel=1e-4)


def _float64_loss(hidden: Tensor, head: Tensor, targets: Tensor, mask: Tensor, spec: LossSpec) -> float:
    assert spec.softcap is not None
    capped = spec.softcap * torch.tanh(hidden @ head.T / spec.softcap)
    normalizer = capped.logsumexp(-1)
    nll = normalizer - capped[torch.arange(len(targets)), targets]
    return float((nll + spec.z_weight * normalizer**2)[mask].sum())


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_head_in_parts_equals_the_head_at_once(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.train.loss._HEAD_BYTES", 7 * 16 * 2)
    monkeypatch.setattr("gemsmith.train.loss._PIECE", 3 * 50)
    for ours, plain in zip(*_both(*_case(softcap, 8)), strict=True):
        assert _off(ours, plain) < 1e-6


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_bfloat16_stays_near_the_plain_loss_in_float32(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and their gradients are rounded to 8 bits once each, the master's gradient is float32."""
    monkeypatch.setattr("gemsmith.train.loss._HEAD_BYTES", 7 * 16 * 2)
    (hidden, head), targets, mask, spec = _case(softcap, 8)
    hidden, head = hidden.bfloat16(), head.bfloat16()
    wanted = _both([hidden.float(), head.float()], targets, mask, spec)[1]
    ours = _both([hidden, head.float()], targets, mask, spec)[0]
    assert ours[2].dtype == torch.float32
    for found, plain, bound in zip(ours, wanted, (2e-3, 2e-2, 2e-2), strict=True):
        assert _off(found, plain) < bound


def test_unscored_tokens_change_nothing() -> None:
    (hidden, head), targets, mask, spec = _case(5.0, 8)
    loss = chunked_loss(hidden, head, targets, loss_mask=mask, spec=spec)
    other = hidden + (~mask)[:, None].float()
    assert chunked_loss(other, head, targets, loss_mask=mask, spec=spec) == loss


def test_unscored_tokens_have_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, head), targets, mask, spec = _case(5.0, 8)
    seen: list[int] = []
    real = torch.mm

    def counting(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        seen.append(a.shape[0])
        return real(a, b, out=out)

    monkeypatch.setattr("gemsmith.train.loss.torch.mm", counting)
    chunked_loss(hidden, head, targets, loss_mask=mask, spec=spec)
    n_scored, size = int(mask.sum()), 8
    assert sum(seen) == -(-n_scored // size) * size < len(mask)


def test_trap_products_have_few_shapes_however_many_tokens_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps what it prepares for each shape, so a new one every step fills the memory of a long run."""
    hidden, head = torch.randn(256, 8, requires_grad=True), torch.randn(32, 8, requires_grad=True)
    shapes, product = set(), torch.mm

    def counting(a: Tensor, b: Tensor, **options: Tensor) -> Tensor:
        shapes.add((a.shape, b.shape))
        return product(a, b, **options)

    monkeypatch.setattr("gemsmith.train.loss.torch.mm", counting)
    for n_scored in range(129, 193):
        mask = torch.arange(256) < n_scored
        chunked_loss(hidden, head, torch.zeros(256, dtype=torch.long), loss_mask=mask, spec=LossSpec()).backward()
    assert len(shapes) == 2  # scores, and the head's gradient


def test_no_target_gives_no_loss_and_no_gradient() -> None:
    tensors, targets, mask, spec = _case(None, 8)
    (loss, grad_hidden, grad_head), _ = _both(tensors, targets, torch.zeros_like(mask), spec)
    assert loss == 0
    assert not grad_hidden.any()
    assert not grad_head.any()


def test_value_alone_is_the_same_value() -> None:
    tensors, targets, mask, spec = _case(5.0, 8)
    hidden, head = (t.requires_grad_() for t in tensors)
    with torch.no_grad():
        alone = chunked_loss(hidden, head, targets, loss_mask=mask, spec=spec)
    loss = chunked_loss(hidden, head, targets, loss_mask=mask, spec=spec)
    assert not alone.requires_grad
    assert alone == loss


def test_gradient_is_handed_over_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of 256,000 pieces is a gigabyte: what forward computed is what the weight gets."""
    (hidden, head), targets, mask, spec = _case(5.0, 8)
    made: list[int] = []
    real = torch.empty_like

    def watched(like: Tensor) -> Tensor:
        tensor = real(like)
        made.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr("gemsmith.train.loss.torch.empty_like", watched)
    head.requires_grad_()
    chunked_loss(hidden, head, targets, loss_mask=mask, spec=spec).backward()
    assert head.grad is not None
    assert made == [head.grad.data_ptr()]


def test_softcap_bounds_the_loss() -> None:
    """Without the cap a wrong and certain guess costs 100 nats; with one of 5 at most 10 and the normalizer."""
    hidden, head = torch.tensor([[100.0]]), torch.tensor([[1.0], [0.0]])
    args = (hidden, head, torch.tensor([1]))
    mask = torch.tensor([True])
    assert chunked_loss(*args, loss_mask=mask, spec=LossSpec(None)) > 99
    assert chunked_loss(*args, loss_mask=mask, spec=LossSpec(5.0)) < 6


def test_chunk_follows_from_the_vocabulary() -> None:
    assert LossSpec().chunk_tokens(256_000, 2) == 262
    assert LossSpec().chunk_tokens(8_192, 2) == 8_192
    assert LossSpec(chunk=16).chunk_tokens(256_000, 2) == 16
    assert LossSpec().chunk_tokens(1 << 40, 2) == 1


_PEAK = """
import torch
from gemsmith.train.loss import LossSpec, chunked_loss

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

def run(n_tokens, vocab_size, width):
    hidden = torch.randn(n_tokens, width).bfloat16().requires_grad_()
    head = torch.randn(vocab_size, width).requires_grad_()
    targets, mask = torch.randint(0, vocab_size, (n_tokens,)), torch.ones(n_tokens, dtype=torch.bool)
    before = peak()
    chunked_loss(hidden, head, targets, loss_mask=mask, spec=LossSpec(30.0, 1e-4)).backward()
    return peak() - before - hidden.grad.nbytes - head.grad.nbytes

run(64, 100, 256)  # libraries take their own memory at the first product
print(run(2_048, 256_000, 256))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_large_vocabulary_takes_less_than_300_megabytes() -> None:
    """Above inputs and their gradients; all scores at once would be 1,049 MB in bfloat16 alone."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert 50 * _MEGABYTE < int(done.stdout) < 300 * _MEGABYTE
