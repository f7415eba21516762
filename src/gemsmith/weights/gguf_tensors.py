"""What a network's matrices and norms are written as in a GGUF file, and their bytes, piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from gemsmith.kernels.quantized import Quantized, Scheme, dequantize, unpack_nibbles
from gemsmith.model.transformer import Transformer
from gemsmith.weights.gguf_blocks import BY_NAME, BlockFormat
from gemsmith.weights.gguf_encode import encode_blocks, join_q4_0, join_q8_0
from gemsmith.weights.gguf_names import is_shifted, tensor_name
from gemsmith.weights.quantized import check_whole, quantized_modules

# The formats a matrix in few bits has a counterpart in: its values are written as they are.
NATIVE = {"Q8_0": Scheme(8, 32), "Q4_0": Scheme(4, 32)}
_PIECE_ITEMS = 1 << 20


@dataclass(frozen=True)
class Source:
    """One tensor to be written.

    Attributes:
        numbers: Dense, or in few bits.
        block: How it is stored.
    """

    numbers: Tensor | Quantized
    block: BlockFormat
    is_norm: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, rows first."""
        return tuple(self.numbers.shape)

    @property
    def n_bytes(self) -> int:
        """How long it is in the file."""
        n_items = 1
        for size in self.shape:
            n_items *= size
        return n_items // self.block.n_items * self.block.n_bytes

    def pieces(self) -> Iterator[UInt8[Tensor, " n_bytes"]]:
        """Yield its bytes in order."""
        if isinstance(self.numbers, Quantized):
            yield from _pieces_of_few_bits(self.numbers, self.block)
            return
        for piece in self.numbers.reshape(-1).split(_PIECE_ITEMS):
            wide = piece.to(device="cpu", dtype=torch.float32) + (1.0 if self.is_norm else 0.0)
            yield encode_blocks(wide, self.block)


def sources(network: Transformer, wanted: BlockFormat) -> dict[str, Source]:
    """Return the tensors of a file by their names there.

    Norms are kept in float32. A matrix whose rows the wanted blocks do not divide is kept in float16.

    Raises:
        CheckpointError: The network is not what its configuration says.
    """
    found: dict[str, Tensor | Quantized] = {name: p.detach() for name, p in network.named_parameters()}
    found |= {f"{name}.weight": q for name, q in quantized_modules(network).items()}
    written = {}
    for name in check_whole(network):
        numbers, is_norm = found[name], is_shifted(name)
        block = BY_NAME["F32"] if is_norm else wanted
        if numbers.shape[-1] % block.n_items:
            block = BY_NAME["F16"]
        written[tensor_name(name, network.config.family)] = Source(numbers, block, is_norm)
    return written


def _pieces_of_few_bits(q: Quantized, block: BlockFormat) -> Iterator[UInt8[Tensor, " n_bytes"]]:
    """Yield the values of a matrix as they are where the format has the same, and rounded anew elsewhere."""
    is_kept = NATIVE.get(block.name) == q.scheme
    for rows in _rows(q, max(1, _PIECE_ITEMS // q.shape[1])):
        if not is_kept:
            yield encode_blocks(dequantize(rows).view(-1), block)
        elif q.scheme.bits == 8:
            yield join_q8_0(rows.values.view(-1, block.n_items), rows.scales.view(-1, 1))
        else:
            yield join_q4_0(unpack_nibbles(rows.values).view(-1, block.n_items), rows.scales.view(-1, 1))


def _rows(q: Quantized, n_rows: int) -> Iterator[Quantized]:
    for start in range(0, q.shape[0], n_rows):
        values, scales = q.values[start : start + n_rows].cpu(), q.scales[start : start + n_rows].cpu()
        zeros = None if q.zeros is None else q.zeros[start : start + n_rows].cpu()
        yield Quantized(q.scheme, (len(values), q.shape[1]), values, scales, zeros)
