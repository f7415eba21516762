import pytest
import torch
from torch import Tensor

from against_plain import numbers
from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import (
    Quantized,
    Scheme,
    dequantize,
    middle,
    pack_nibbles,
    plain_quantized_linear,
    quantize,
    quantize_activations,
    round_activations,
    unpack_nibbles,
)

SCHEMES = [
    Scheme(bits, group, is_symmetric) for bits in (4, 8) for group in (None, 32, 64) for is_symmetric in (True, False)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("d_out", [1, 5, 33])
def test_no_weight_is_off_by_more_than_half_a_step(scheme: Scheme, d_out: int) -> None:
    weight = numbers(d_out, 192, seed=1) + (0.0 if scheme.is_symmetric else 0.7)
    q = quantize(weight, scheme)
    steps = q.scales.repeat_interleave(192 // q.scales.shape[1], dim=1)
    assert ((dequantize(q) - weight).abs() <= 0.5001 * steps).all()
    used = (q.values if scheme.bits == 8 else unpack_nibbles(q.values)).float()
    reach = 2 * (used - middle(scheme)).abs() if scheme.is_symmetric else used - scheme.lowest
    assert reach.amax() >= 2**scheme.bits - 2  # the whole range is used


def test_definition_by_hand() -> None:
    weight = torch.tensor([[-7.5, 3.4, 0.0, 7.5], [0.0, 0.0, 0.0, 15.0]])
    q = quantize(weight, Scheme(4, 2))
    assert q.scales.tolist() == [[1.0, 1.0], [1.0, 2.0]]
    # -7.5 and 7.5 steps above 8: ties go to even, then into the range of 0 to 15.
    assert unpack_nibbles(q.values).tolist() == [[0, 11, 8, 15], [8, 8, 8, 15]]
    assert dequantize(q).tolist() == [[-8.0, 3.0, 0.0, 7.0], [0.0, 0.0, 0.0, 14.0]]
    q = quantize(weight, Scheme(4, None, False))
    assert q.zeros is not None
    assert (q.zeros.tolist(), unpack_nibbles(q.values).tolist()) == ([[8], [0]], [[0, 11, 8, 15], [0, 0, 0, 15]])


def test_low_half_of_a_byte_is_the_first_input() -> None:
    assert pack_nibbles(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)).tolist() == [[0x21, 0x0F]]
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack_nibbles(unpack_nibbles(values)), values)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zeros(scheme: Scheme) -> None:
    weight = numbers(3, 64, seed=2)
    weight[:, :32], weight[1] = 0.0, 0.0
    assert (dequantize(quantize(weight, scheme))[weight == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_rounded_once_stays(dtype: torch.dtype) -> None:
    q = quantize(numbers(8, 64, seed=3), Scheme(8, 32), scale_dtype=dtype)
    assert q.scales.dtype == dtype
    steps = q.scales.float().repeat_interleave(32, dim=1)
    assert torch.equal((dequantize(q) / steps).round().to(torch.int8), q.values)


def test_weights_own_dtype_holds_the_scales() -> None:
    assert quantize(numbers(2, 32, seed=4, dtype=torch.bfloat16), Scheme(4, 32)).scales.dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_linear_is_the_product_with_what_is_stored(scheme: Scheme) -> None:
    weight, x = numbers(7, 64, seed=5), numbers(2, 3, 64, seed=6)
    q = quantize(weight, scheme)
    torch.testing.assert_close(plain_quantized_linear(x, q), x @ dequantize(q).T)
    rounded = plain_quantized_linear(x, q, rounds_activations=True)
    torch.testing.assert_close(rounded, round_activations(x) @ dequantize(q).T)


@pytest.mark.parametrize("d_in", [1, 31, 32, 33, 100])
def test_activations_are_off_by_half_a_step_at_most(d_in: int) -> None:
    x = numbers(4, d_in, seed=7)
    values, scales = quantize_activations(x)
    assert values.shape == (4, (d_in + 31) // 32 * 32)
    assert not values[:, d_in:].any()
    steps = scales.repeat_interleave(32, dim=1)[:, :d_in]
    assert ((round_activations(x) - x).abs() <= 0.5001 * steps).all()
    assert (values.abs().amax(-1) == 127).all()


def test_one_large_activation_does_not_coarsen_other_groups() -> None:
    x = numbers(1, 64, seed=8)
    x[0, 3] = 1000.0
    assert (round_activations(x) - x)[0, 32:].abs().max() < 0.02


def test_activations_of_nothing_and_of_nonsense() -> None:
    x = torch.zeros(4, 64)
    x[1, 5], x[2, 40], x[3, 7] = float("nan"), float("inf"), 1e-38
    rounded = round_activations(x)
    assert (rounded[0] == 0).all()
    assert rounded[1, :32].isnan().all()
    assert rounded[2, 32:].isnan().all()
    assert rounded.isnan().sum() == 64
    assert (rounded[3] == 0).all()


def test_groups_must_divide() -> None:
    with pytest.raises(ConfigError, match=r"group must divide d_in; got 32 and 40"):
        quantize(numbers(2, 40, seed=9), Scheme(8, 32))
    with pytest.raises(ConfigError, match=r"d_in must be even for 4 bits; got 7"):
        quantize(numbers(2, 7, seed=9), Scheme(4, None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_must_be_finite(bad: float) -> None:
    weight = numbers(2, 32, seed=10)
    weight[1, 4] = bad
    with pytest.raises(ConfigError, match=rf"weight must be finite; got {bad}"):
        quantize(weight, Scheme(8, None))


def test_scales_must_fit_their_dtype() -> None:
    with pytest.raises(ConfigError, match=r"scale_dtype must hold the largest step; got torch\.float16 and 1\.33e\+07"):
        quantize(torch.full((1, 32), 1e8), Scheme(4, 32), scale_dtype=torch.float16)


def test_schemes_must_make_sense() -> None:
    with pytest.raises(ConfigError, match=r"group must be at least 1; got 0"):
        Scheme(8, 0)


def changed(q: Quantized, **parts: Tensor | None) -> Quantized:
    fields = {"values": q.values, "scales": q.scales, "zeros": q.zeros} | parts
    return Quantized(q.scheme, q.shape, **fields)  # pyright: ignore[reportArgumentType]


def test_parts_must_belong_together() -> None:
    q = quantize(numbers(2, 64, seed=11), Scheme(4, 32))
    with pytest.raises(
        ConfigError, match=r"values must be torch\.uint8 of shape \(2, 32\); got torch\.int8 of \(2, 32\)"
    ):
        changed(q, values=q.values.to(torch.int8))
    with pytest.raises(ConfigError, match=r"scales must be .* of shape \(2, 2\); got torch\.float32 of \(2, 1\)"):
        changed(q, scales=q.scales[:, :1])
    with pytest.raises(ConfigError, match=r"zeros must be given for asymmetric schemes alone; got some"):
        changed(q, zeros=torch.zeros(2, 2, dtype=torch.uint8))


def test_size_counts_everything() -> None:
    q = quantize(numbers(2, 64, seed=12, dtype=torch.bfloat16), Scheme(4, 32, False))
    assert q.n_bytes == 2 * 32 + 2 * 2 * 2 + 2 * 2
