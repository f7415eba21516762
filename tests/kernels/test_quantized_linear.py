import pytest
import torch
from torch import Tensor

from against_plain import numbers
from gemsmith.kernels import fused_geglu, native, quantized_linear
from gemsmith.kernels.quantized import Quantized, Scheme, dequantize, plain_quantized_linear, quantize
from gemsmith.model import ops

# (d_in, group): units that are not full, several groups, groups of several units.
SHAPES = [(34, None), (64, 32), (128, 64), (256, 128), (192, None)]
KINDS = [(bits, is_symmetric) for bits in (4, 8) for is_symmetric in (True, False)]
N_ROWS = (1, 2, 3, 7, 21, 45)  # the last by strips

needs_library = pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")


def example(scheme: Scheme, d_in: int, d_out: int, scale_dtype: torch.dtype = torch.float32) -> Quantized:
    return quantize(numbers(d_out, d_in, seed=d_in + d_out) + 0.1, scheme, scale_dtype=scale_dtype)


@pytest.mark.parametrize(("bits", "is_symmetric"), KINDS)
@pytest.mark.parametrize(("d_in", "group"), SHAPES)
@pytest.mark.parametrize("d_out", [1, 16, 17, 40])
def test_linear_equals_the_plain_one(
    isa: str, bits: int, is_symmetric: bool, d_in: int, group: int | None, d_out: int
) -> None:
    q = example(Scheme(bits, group, is_symmetric), d_in, d_out)  # pyright: ignore[reportArgumentType]
    packed = quantized_linear.pack(q)
    for n_rows in N_ROWS:
        x = numbers(n_rows, d_in, seed=n_rows, size=3.0)
        assert quantized_linear.is_suitable(x, packed)
        expected = plain_quantized_linear(x, q, rounds_activations=True)
        found = quantized_linear.linear(x, packed)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_of_every_dtype(isa: str, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    q = example(Scheme(4, 32, False), 96, 33, scale_dtype)
    x = numbers(2, 3, 96, seed=1, dtype=dtype)
    found = quantized_linear.linear(x, quantized_linear.pack(q))
    expected = plain_quantized_linear(x, q, rounds_activations=True)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-4)


def test_float16_scales_of_every_kind(isa: str) -> None:
    """Subnormal ones too, which portable code widens itself."""
    q = example(Scheme(8, None), 32, 16, torch.float16)
    scales = torch.tensor([[2.0**-24], [3 * 2.0**-24], [2.0**-14], [1.0], [-0.5], [65504.0], [0.0], [1.0 / 3]] * 2)
    q = Quantized(q.scheme, q.shape, q.values, scales.half(), None)
    x = numbers(1, 32, seed=2)
    expected = plain_quantized_linear(x, q, rounds_activations=True)
    torch.testing.assert_close(quantized_linear.linear(x, quantized_linear.pack(q)), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_exact_at_their_ends(isa: str, bits: int) -> None:
    """The largest products: 16-bit sums in between would overflow or saturate."""
    lowest = Scheme(bits, 32).lowest  # pyright: ignore[reportArgumentType]
    d_in, ends = 128, (lowest, lowest + 2**bits - 1)
    values = torch.tensor(ends).repeat(16, d_in // 2)
    values[8:] = torch.tensor(ends)[:, None].repeat(4, d_in)
    stored = values.to(torch.int8) if bits == 8 else (values[:, ::2] | values[:, 1::2] << 4).to(torch.uint8)
    q = Quantized(Scheme(bits, None), (16, d_in), stored, torch.ones(16, 1), None)  # pyright: ignore[reportArgumentType]
    x = torch.tensor([127.0, -127.0]).repeat(4, d_in // 2)
    x[1], x[2] = 127.0, -127.0
    exact = x.double() @ dequantize(q).double().T
    assert torch.equal(quantized_linear.linear(x, quantized_linear.pack(q)).double(), exact)


@needs_library
@pytest.mark.parametrize(("bits", "is_symmetric"), KINDS)
def test_instruction_sets_agree_in_every_bit(bits: int, is_symmetric: bool) -> None:
    """With scales that are powers of two there is nothing to round, so that integers show."""
    q = example(Scheme(bits, 64, is_symmetric), 256, 50)  # pyright: ignore[reportArgumentType]
    q = Quantized(q.scheme, q.shape, q.values, torch.full_like(q.scales, 0.25), q.zeros)
    x = numbers(41, 256, seed=3).mul(40).round().clamp(-127, 127)
    x[:, ::32] = 127.0
    packed, found, before = quantized_linear.pack(q), [], native.isa()
    for name in native.available():
        native.select(name)
        found.append(quantized_linear.linear(x, packed))
    native.select(before)
    assert all(torch.equal(y, found[0]) for y in found)
    assert torch.equal(found[0].double(), x.double() @ dequantize(q).double().T)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_neighbours(isa: str, bits: int) -> None:
    q = example(Scheme(bits, 32), 320, 70)  # pyright: ignore[reportArgumentType]
    packed, x = quantized_linear.pack(q), numbers(45, 320, seed=4)
    together = quantized_linear.linear(x, packed)
    assert torch.equal(torch.cat([quantized_linear.linear(row[None], packed) for row in x]), together)
    assert torch.equal(quantized_linear.linear(x[5:18], packed), together[5:18])


@pytest.mark.parametrize(("n_rows", "d_out"), [(1, 3000), (5, 700), (45, 700)])
def test_threads_change_nothing(isa: str, n_rows: int, d_out: int) -> None:
    q = example(Scheme(4, 32), 512, d_out)  # several turns for each number of rows
    packed, x, before = quantized_linear.pack(q), numbers(n_rows, 512, seed=5), torch.get_num_threads()
    found = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        found.append(quantized_linear.linear(x, packed))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_not_a_number_stays_so(isa: str) -> None:
    q = example(Scheme(8, 32), 96, 20)
    x = numbers(4, 96, seed=6)
    x[1, 50], x[2, 95] = float("nan"), float("-inf")
    found = quantized_linear.linear(x, quantized_linear.pack(q)).isnan()
    assert found.all(dim=1).tolist() == [False, True, True, False]
    assert not found[[0, 3]].any()


def test_zeros_give_zeros(isa: str) -> None:
    q = example(Scheme(4, 32, False), 96, 20)
    assert (quantized_linear.linear(torch.zeros(3, 96), quantized_linear.pack(q)) == 0).all()


@pytest.mark.parametrize("n_rows", [3, 45])
def test_matrices_that_share_an_input_are_each_what_they_are_alone(isa: str, n_rows: int) -> None:
    kinds = [
        Scheme(4, 32),
        Scheme(4, 64),
        Scheme(4, 32, False),
        Scheme(8, None, False),
        Scheme(8, None),
        Scheme(4, None),
    ]
    packed = [quantized_linear.pack(example(scheme, 192, 17 + i)) for i, scheme in enumerate(kinds)]
    x = numbers(n_rows, 192, seed=8, dtype=torch.bfloat16)
    for y, matrix in zip(quantized_linear.linears(x, packed), packed, strict=True):
        assert torch.equal(y, quantized_linear.linear(x, matrix))


# d_ff: units that are not full, an odd number of blocks.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d_ff", "n_rows"), [(96, 16), (50, 45), (34, 37), (16, 130)])
@pytest.mark.parametrize("bits", [(4, 4), (4, 8), (8, 8)])
def test_a_gated_layer_is_its_three_products_in_every_bit(
    isa: str, dtype: torch.dtype, d_ff: int, n_rows: int, bits: tuple[int, int]
) -> None:
    first, last = (Scheme(n, None, n == 8) for n in bits)  # pyright: ignore[reportArgumentType]
    gate, up, down = (
        quantized_linear.pack(example(scheme, d_in, d_out))
        for scheme, d_in, d_out in ((first, 70, d_ff), (first, 70, d_ff), (last, d_ff, 40))
    )
    x = numbers(n_rows, 70, seed=9, dtype=dtype)
    x[1, 3] = float("nan")
    assert quantized_linear.can_feed(x, gate, up, down)
    gated = fused_geglu.gated_gelu(*quantized_linear.linears(x, (gate, up)))
    expected = quantized_linear.linear(gated, down)
    assert torch.equal(quantized_linear.feed_forward(x, gate, up, down).nan_to_num(7.0), expected.nan_to_num(7.0))
    assert expected.isnan().any(1).tolist() == [row == 1 for row in range(n_rows)]


@needs_library
def test_only_gated_layers_of_one_kind_are_taken_at_once() -> None:
    gate, down = (quantized_linear.pack(example(Scheme(4, 32), *sizes)) for sizes in ((64, 96), (96, 64)))
    other = quantized_linear.pack(example(Scheme(8, 32), 64, 96))
    x = numbers(16, 64, seed=7)
    assert quantized_linear.can_feed(x, gate, gate, down)
    assert not quantized_linear.can_feed(x, gate, other, down)
    assert not quantized_linear.can_feed(x[:15], gate, gate, down)
    assert not quantized_linear.can_feed(x.half(), gate, gate, down)


@needs_library
@pytest.mark.parametrize(("bits", "is_symmetric"), KINDS)
@pytest.mark.parametrize(("d_in", "group"), SHAPES)
def test_unpacking_gives_back_what_was_packed(bits: int, is_symmetric: bool, d_in: int, group: int | None) -> None:
    q = example(Scheme(bits, group, is_symmetric), d_in, 21)  # pyright: ignore[reportArgumentType]
    packed = quantized_linear.pack(q)
    assert_same(quantized_linear.unpack(packed), q)
    rows = torch.tensor([20, 0, 16, 0])
    torch.testing.assert_close(dequantize(quantized_linear.unpack(packed, rows)), dequantize(q)[rows])


def assert_same(found: Quantized, q: Quantized) -> None:
    assert (found.scheme, found.shape) == (q.scheme, q.shape)
    for mine, other in ((found.values, q.values), (found.scales, q.scales), (found.zeros, q.zeros)):
        assert (mine is None and other is None) or (isinstance(mine, Tensor) and torch.equal(mine, other))  # pyright: ignore[reportArgumentType]


@needs_library
def test_only_what_it_can_do_is_given_to_it() -> None:
    assert not quantized_linear.can_pack(example(Scheme(4, 16), 64, 4))
    assert not quantized_linear.can_pack(example(Scheme(8, 48), 96, 4))
    packed = quantized_linear.pack(example(Scheme(4, 32), 64, 4))
    x = numbers(2, 64, seed=7)
    assert not quantized_linear.is_suitable(x.half(), packed)
    assert not quantized_linear.is_suitable(x.clone().requires_grad_(), packed)
    with torch.no_grad():
        assert quantized_linear.is_suitable(x.clone().requires_grad_(), packed)


@needs_library
def test_shapes_are_known_without_computing() -> None:
    packed = quantized_linear.pack(example(Scheme(4, 32), 64, 20))
    x, matrix = torch.empty(3, 64, device="meta"), ([packed.values.to("meta")], [packed.scales.to("meta")], [None])
    (out,) = torch.ops.gemsmith.quantized_linears(x, *matrix, [1, 64, 20])
    assert (out.shape, out.device.type) == ((3, 20), "meta")
    out = torch.ops.gemsmith.quantized_feed_forward(x, *(3 * part for part in matrix), [1, 64, 32] * 2 + [1, 32, 64])
    assert (out.shape, out.device.type) == ((3, 64), "meta")


@needs_library
def test_inputs_of_another_width_are_refused() -> None:
    packed = quantized_linear.pack(example(Scheme(8, None), 40, 24))
    wide = quantized_linear.pack(example(Scheme(8, None), 24, 24))
    for x in (torch.ones(2, 8), torch.ones(2, 80)):
        assert not quantized_linear.is_suitable(x, packed)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            ops.quantized_linear(x, packed)
    x = torch.ones(32, 40)
    assert quantized_linear.can_feed(x, packed, packed, wide)
    assert not quantized_linear.can_feed(x, packed, packed, packed)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("d_out", "d_in"), [(1, 32), (16, 64), (37, 256), (400, 96)])
def test_blocks_of_gguf_are_packed_as_what_they_hold(isa: str, bits: int, d_out: int, d_in: int) -> None:
    n_units, generator = d_in // 32, torch.Generator().manual_seed(d_out)
    steps = torch.randn(d_out, n_units, 1, generator=generator).half()
    if bits == 8:
        values = torch.randint(-128, 128, (d_out, n_units, 32), generator=generator).to(torch.int8)
        held, plain = values.view(torch.uint8), values.flatten(1)
    else:
        values = torch.randint(16, (d_out, n_units, 32), generator=generator).to(torch.uint8)
        held, plain = (
            values[..., :16] | values[..., 16:] << 4,
            values.flatten(1)[:, ::2] | values.flatten(1)[:, 1::2] << 4,
        )
    raw = torch.cat((steps.view(torch.uint8), held), dim=-1).flatten(1)
    scheme = Scheme(bits, 32)  # pyright: ignore[reportArgumentType]
    wanted = quantized_linear.pack(Quantized(scheme, (d_out, d_in), plain, steps.flatten(1), None))
    found = quantized_linear.pack_blocks(raw, scheme)
    assert (found.scheme, found.shape, found.zeros) == (wanted.scheme, wanted.shape, None)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.scales, wanted.scales)
