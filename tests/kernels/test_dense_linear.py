import pytest
import torch

from gemsmith.kernels import dense_linear, native
from gemsmith.model import ops

pytestmark = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 8])
@pytest.mark.parametrize(("d_in", "d_out"), [(1, 1), (33, 17), (320, 1000)])
def test_product_of_few_rows(d_in: int, d_out: int, n_rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=generator).to(dtype)
    x = torch.randn(n_rows, d_in, generator=generator).to(dtype)
    assert dense_linear.is_suitable(x, weight)
    found = dense_linear.linear(x, weight)
    assert found.dtype == dtype
    precision = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=precision, atol=1e-4)
    assert torch.equal(dense_linear.linear(x[-1:], weight)[0], found[-1])


def test_gradients_and_many_rows_are_left_to_torch() -> None:
    x, weight = torch.randn(1, 16), torch.randn(8, 16, requires_grad=True)
    assert not dense_linear.is_suitable(x, weight)
    assert dense_linear.is_suitable(x, weight.detach())
    assert not dense_linear.is_suitable(torch.randn(dense_linear.MAX_ROWS + 1, 16), weight.detach())
    assert not dense_linear.is_suitable(torch.randn(0, 16), weight.detach())
    ops.linear(x, weight).sum().backward()
    assert weight.grad is not None


def test_nan_comes_out() -> None:
    x = torch.ones(2, 40)
    x[1, 3] = torch.nan
    found = dense_linear.linear(x, torch.ones(5, 40))
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_inputs_of_another_width_are_left_to_torch_which_refuses_them() -> None:
    weight = torch.ones(5, 20)
    assert not any(dense_linear.is_suitable(x, weight) for x in (torch.ones(1, 40), torch.ones(3, 10), torch.ones(40)))
    assert dense_linear.is_suitable(torch.ones(20), weight) == native.is_loaded()
