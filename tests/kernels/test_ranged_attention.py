import subprocess
import sys

import pytest
import torch
from torch import Tensor

from gemsmith.kernels import native, ranged_attention
from gemsmith.model import ops

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")

# tokens, query heads, key heads, head size
SHAPES = [(1, 1, 1, 8), (17, 4, 1, 24), (130, 4, 2, 64), (65, 3, 3, 40), (70, 2, 1, 96), (40, 2, 1, 256)]
LONG = (1100, 2, 1, 32)  # three chunks of the kernel
CAPS = [None, 2.0, 50.0, 100.0]
Inputs = tuple[Tensor, Tensor, Tensor]


def firsts(n_tokens: int, kind: str) -> Tensor:
    """Return the first key each token sees under a mask of this kind."""
    t = torch.arange(n_tokens)
    kinds = {
        "causal": torch.zeros_like(t),
        "window": (t - 20).clamp(min=0),
        "documents": t // 37 * 37,
        "blind tokens": torch.where(t % 5 == 2, t + 1, (t - 50).clamp(min=0)),
        "any order": (torch.rand(n_tokens, generator=torch.Generator().manual_seed(0)) * (t + 2)).long(),
    }
    return kinds[kind].int()


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, size: float = 1.0) -> Inputs:
    n_tokens, n_heads, n_kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(sum(shape))
    q, k, v = (
        (torch.randn(n_tokens, n, head_dim, generator=generator) * size).to(dtype).requires_grad_()
        for n in (n_heads, n_kv_heads, n_kv_heads)
    )
    return q, k, v


def plain(q: Tensor, k: Tensor, v: Tensor, first: Tensor, *, scale: float, cap: float | None) -> Tensor:
    """Return ops.plain_attention under the mask that `first` stands for."""
    j = torch.arange(first.numel())
    mask = (first[:, None] <= j) & (j <= j[:, None])
    keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
    return ops.plain_attention(q[None], keys, values, mask[None], scale=scale, cap=cap)[0]


def results(function, tensors: Inputs, first: Tensor, cap: float | None, scale: float = 0.3) -> list[Tensor]:
    """Return the output and the gradients of a weighted sum of it."""
    out = function(*tensors, first, scale=scale, cap=cap)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, weight)]


def doubles(tensors: Inputs) -> Inputs:
    q, k, v = (x.detach().double().requires_grad_() for x in tensors)
    return q, k, v


def error(found: Tensor, truth: Tensor) -> float:
    return (found.double() - truth).square().mean().sqrt().item()


@pytest.mark.parametrize("kind", ["causal", "window", "documents", "blind tokens", "any order"])
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_plain_attention(
    isa: str, shape: tuple[int, int, int, int], cap: float | None, kind: str
) -> None:
    tensors, first = inputs(shape, torch.float32), firsts(shape[0], kind)
    assert ranged_attention.is_suitable(*tensors[:2])
    truth = results(plain, doubles(tensors), first, cap)
    for found, true in zip(results(ranged_attention.attention, tensors, first, cap), truth, strict=True):
        assert error(found, true) <= 1e-5 * true.square().mean().sqrt() + 1e-6


@pytest.mark.parametrize("kind", ["causal", "blind tokens"])
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_as_exact_as_plain_attention(
    isa: str, shape: tuple[int, int, int, int], cap: float | None, kind: str
) -> None:
    tensors, first = inputs(shape, torch.bfloat16), firsts(shape[0], kind)
    truth = results(plain, doubles(tensors), first, cap)
    ours = results(ranged_attention.attention, tensors, first, cap)
    for found, other, true in zip(ours, results(plain, tensors, first, cap), truth, strict=True):
        assert error(found, true) <= 1.1 * error(other, true) + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["causal", "window", "any order"])
def test_chunks_of_a_long_document_add_up(isa: str, kind: str, dtype: torch.dtype) -> None:
    tensors, first = inputs(LONG, dtype), firsts(LONG[0], kind)
    truth = results(plain, doubles(tensors), first, 50.0)
    ours = results(ranged_attention.attention, tensors, first, 50.0)
    for found, other, true in zip(ours, results(plain, tensors, first, 50.0), truth, strict=True):
        assert error(found, true) <= 1.1 * error(other, true) + 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", CAPS)
def test_large_scores_do_not_overflow(isa: str, cap: float | None, dtype: torch.dtype) -> None:
    tensors, first = inputs((70, 2, 1, 32), dtype, size=40.0), firsts(70, "causal")
    out, dq, dk, dv = results(ranged_attention.attention, tensors, first, cap, scale=1.0)
    true = results(plain, doubles(tensors), first, cap, scale=1.0)
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    assert error(out, true[0]) <= (1e-3 if dtype == torch.float32 else 3e-2) * 40.0


@pytest.mark.parametrize("cap", [None, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_in_is_nan_out(isa: str, place: int, dtype: torch.dtype, cap: float | None) -> None:
    tensors = inputs((40, 2, 1, 32), dtype)
    with torch.no_grad():
        tensors[place][5, 0, 3] = torch.nan
    found = results(ranged_attention.attention, tensors, firsts(40, "causal"), cap)
    assert found[0][5, 0].isnan().all() if place != 2 else found[0][5, 0, 3].isnan()
    assert found[1][5].isnan().any()


def test_tokens_that_see_nothing_get_zeros(isa: str) -> None:
    tensors, first = inputs((33, 2, 1, 16), torch.bfloat16), torch.arange(1, 34, dtype=torch.int32)
    assert all((x == 0).all() for x in results(ranged_attention.attention, tensors, first, 50.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_keys_have_no_influence_at_all(isa: str, dtype: torch.dtype) -> None:
    """Not even a rounded one: that no future token is seen is proved by gradients that are exactly zero."""
    q, k, v = inputs((150, 2, 1, 32), dtype)
    out = ranged_attention.attention(q, k, v, firsts(150, "window"), scale=0.2, cap=50.0)
    for gradient in torch.autograd.grad(out[100].sum(), (k, v)):
        assert (gradient[:80] == 0).all()
        assert (gradient[101:] == 0).all()
        assert (gradient[80:101] != 0).any(-1).all()


@pytest.mark.parametrize("kind", ["causal", "window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(isa: str, dtype: torch.dtype, kind: str) -> None:
    tensors, first = inputs((600, 4, 2, 8), dtype), firsts(600, kind)
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append(results(ranged_attention.attention, tensors, first, 50.0))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradients_equal_differences(isa: str, cap: float | None) -> None:
    tensors, first = inputs((6, 2, 1, 8), torch.float32), firsts(6, "window")
    gradients = results(ranged_attention.attention, tensors, first, cap)[1:]
    weight = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(1))
    for place, gradient in enumerate(gradients):
        step = torch.zeros_like(gradient)
        step.view(-1)[3] = 0.05
        sides = []
        for sign in (1, -1):
            moved = [x.detach() + sign * step if i == place else x.detach() for i, x in enumerate(tensors)]
            sides.append((ranged_attention.attention(*moved, first, scale=0.3, cap=cap) * weight).sum())  # type: ignore[arg-type]
        assert ((sides[0] - sides[1]) / 0.1).item() == pytest.approx(gradient.view(-1)[3].item(), abs=2e-3)


def test_logsumexp_is_that_of_the_seen_scores(isa: str) -> None:
    q, k, v = inputs((9, 2, 1, 8), torch.float32)
    first = firsts(9, "blind tokens")
    _, logsumexp = torch.ops.gemsmith.ranged_attention(q, k, v, first, 0.3, 5.0)
    scores = ops.softcap(torch.einsum("tnh,sh->nts", q, k[:, 0]) * 0.3, 5.0)
    j = torch.arange(9)
    hidden = (first[:, None] > j) | (j > j[:, None])
    torch.testing.assert_close(logsumexp, scores.masked_fill(hidden, -torch.inf).logsumexp(-1).detach())


def test_heads_may_lie_apart(isa: str) -> None:
    """Such as slices of one product that makes queries, keys and values at once."""
    joined = torch.randn(20, 4, 24, generator=torch.Generator().manual_seed(2))
    parts = joined[:, :2, :16], joined[:, 2:3, 3:19], joined[:, 3:, 8:]
    q, k, v = (x.requires_grad_() for x in parts)
    apart = results(ranged_attention.attention, (q, k, v), firsts(20, "causal"), 50.0)
    q, k, v = (x.detach().contiguous().requires_grad_() for x in parts)
    together = results(ranged_attention.attention, (q, k, v), firsts(20, "causal"), 50.0)
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_other_tensors_are_not_suitable() -> None:
    q, k, _ = inputs((4, 2, 1, 8), torch.float32)
    assert ranged_attention.is_suitable(q, k)
    assert not ranged_attention.is_suitable(q.double(), k.double())
    assert not ranged_attention.is_suitable(q, k.bfloat16())
    assert not ranged_attention.is_suitable(q[None], k[None])


def test_operators_keep_their_promises() -> None:
    tensors, first = inputs((9, 2, 1, 8), torch.float32), firsts(9, "window")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    operators = torch.ops.gemsmith
    torch.library.opcheck(operators.ranged_attention.default, (*tensors, first, 0.3, 50.0), test_utils=checks)
    fixed = [x.detach() for x in tensors]
    out, logsumexp = operators.ranged_attention(*fixed, first, 0.3, 50.0)
    arguments = (out, *fixed, out, logsumexp, first, 0.3, 50.0)
    torch.library.opcheck(operators.ranged_attention_backward.default, arguments, test_utils=checks)


def test_meta_tensors_have_the_shapes_of_real_ones() -> None:
    q, k, v = (x.detach().to("meta") for x in inputs((9, 2, 1, 8), torch.bfloat16))
    out, logsumexp = torch.ops.gemsmith.ranged_attention(q, k, v, firsts(9, "causal").to("meta"), 0.3, 0.0)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (logsumexp.shape, logsumexp.dtype) == ((2, 9), torch.float32)


def test_recomputation_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    tensors, first = inputs((30, 2, 1, 16), torch.float32), firsts(30, "causal")

    def block(*tensors: Tensor) -> Tensor:
        q, k, v = tensors
        return ranged_attention.attention(q, k, v, first, scale=0.3, cap=50.0)

    again = checkpoint(block, *tensors, use_reentrant=False)
    assert isinstance(again, Tensor)
    direct = torch.autograd.grad(block(*tensors).square().sum(), tensors)
    for a, b in zip(direct, torch.autograd.grad(again.square().sum(), tensors), strict=True):
        assert torch.equal(a, b)


# Without the shape checks of the test run, which the compiler cannot look through.
COMPILED = """
import torch
from gemsmith.kernels import ranged_attention
q, k, v = (torch.randn(9, n, 8, requires_grad=True) for n in (2, 1, 1))
first = torch.zeros(9, dtype=torch.int32)
def block(q, k, v):
    return ranged_attention.attention(q * 2, k, v, first, scale=0.3, cap=50.0).square().sum()
compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
for a, b in zip(*(torch.autograd.grad(f(q, k, v), (q, k, v)) for f in (block, compiled))):
    torch.testing.assert_close(a, b)
"""


def test_compiled_code_calls_the_operator() -> None:
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
