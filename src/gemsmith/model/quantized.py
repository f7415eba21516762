"""Linears and the embedding with their matrices in 4 or 8 bits, and a network made of them."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemsmith.errors import ConfigError
from gemsmith.kernels import quantized_linear
from gemsmith.kernels.quantized import Quantized, Scheme, dequantize, quantize
from gemsmith.kernels.quantized_linear import Packed
from gemsmith.model import ops
from gemsmith.model.layers import Embedding
from gemsmith.model.linear import Device, Linear
from gemsmith.model.transformer import Transformer


class Matrix(nn.Module):
    """A matrix in few bits as buffers, in plain order or packed; state dicts hold the plain one."""

    values: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, q: Quantized | Packed) -> None:
        super().__init__()
        self.scheme, self.shape, self.is_packed = q.scheme, q.shape, isinstance(q, Packed)
        self._seen: Quantized | Packed = q
        for name in ("values", "scales", "zeros"):
            self.register_buffer(name, getattr(q, name))

    @property
    def stored(self) -> Quantized | Packed:
        """The matrix in the order it has now."""
        # Put together once, for a small product takes no longer than that; buffers may have been moved since.
        if self._seen.values is not self._buffers["values"] or self._seen.scales is not self._buffers["scales"]:
            kind = Packed if self.is_packed else Quantized
            self._seen = kind(self.scheme, self.shape, self.values, self.scales, self.zeros)
        return self._seen

    def plain(self, rows: Int[Tensor, " R"] | None = None) -> Quantized:
        """Return the matrix in plain order, or that of some of its rows."""
        stored = self.stored
        if isinstance(stored, Packed):
            return quantized_linear.unpack(stored, rows)
        if rows is None:
            return stored
        zeros = None if stored.zeros is None else stored.zeros[rows]
        return Quantized(self.scheme, (len(rows), self.shape[1]), stored.values[rows], stored.scales[rows], zeros)

    def pack(self) -> bool:
        """Bring the matrix into the order the kernels read; False where there is none, or it is there."""
        stored = self.stored
        if isinstance(stored, Packed) or not quantized_linear.can_pack(stored):
            return False
        self._hold(quantized_linear.pack(stored))
        return True

    def _hold(self, matrix: Quantized | Packed) -> None:
        self.is_packed = isinstance(matrix, Packed)
        self.values, self.scales, self.zeros = matrix.values, matrix.scales, matrix.zeros

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Matrix":
        """Move, but keep the dtype of the scales: casting a network does not change its matrices."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        q = self.plain()
        for name in ("values", "scales", "zeros"):
            if getattr(q, name) is not None:
                destination[prefix + name] = getattr(q, name)

    def _load_from_state_dict(self, *arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        was_packed = self.is_packed
        self._hold(self.plain())
        super()._load_from_state_dict(*arguments)
        if was_packed:
            self.pack()


class QuantizedLinear(Linear):
    """A linear in few bits; low-rank deltas on top of it are as on any other."""

    def __init__(self, q: Quantized | Packed) -> None:
        super().__init__(q.shape[1], q.shape[0])
        self.matrix = Matrix(q)

    def store(self, d_in: int, d_out: int, *, dtype: torch.dtype | None = None, device: Device = None) -> None:
        """Create nothing: the matrix is given."""

    @property
    def quantized(self) -> Quantized:
        """The matrix in plain order."""
        return self.matrix.plain()

    def product(self, x: Float[Tensor, "T d_in"]) -> Float[Tensor, "T d_out"]:
        """Return x, rounded to 8 bits, times the matrix."""
        return ops.quantized_linear(x, self.matrix.stored)

    def stored(self) -> list[Tensor]:
        """Return the tensors the matrix lies in."""
        return list(self.matrix.buffers())

    @property
    def packed(self) -> Packed | None:
        """The matrix in the order kernels read; None where it is in plain order."""
        stored = self.matrix.stored
        return stored if isinstance(stored, Packed) else None

    def pack(self) -> bool:
        """Bring the matrix into the order the kernels read; False where there is none."""
        return self.matrix.pack()


class QuantizedEmbedding(Embedding):
    """The table of token vectors in few bits: one copy serves look-ups and the head."""

    def __init__(self, q: Quantized | Packed) -> None:
        super().__init__(0, q.shape[1])
        del self.weight
        self.matrix = Matrix(q)

    @property
    def quantized(self) -> Quantized:
        """The table in plain order."""
        return self.matrix.plain()

    def stored(self) -> list[Tensor]:
        """Return the tensors the table lies in."""
        return list(self.matrix.buffers())

    def pack(self) -> bool:
        """Bring the table into the order the kernels read; False where there is none."""
        return self.matrix.pack()

    def scores(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Return hidden, rounded to 8 bits, times the table."""
        return ops.quantized_linear(hidden, self.matrix.stored)

    def look_up(self, token_ids: Int[Tensor, " T"], dtype: torch.dtype | None) -> Float[Tensor, "T D"]:
        """Return rows of the table, float32 by default.

        Raises:
            IndexError: An id without a row, as the dense table has it.
        """
        n_rows = self.matrix.shape[0]
        if len(token_ids) and (int(token_ids.min()) < 0 or int(token_ids.max()) >= n_rows):
            bad = int(token_ids[(token_ids < 0) | (token_ids >= n_rows)][0])
            raise IndexError(f"token ids must be from 0 to {n_rows - 1}; got {bad}. Encode with the model's tokenizer.")
        return dequantize(self.matrix.plain(token_ids), dtype or torch.float32)


def quantize_network(
    network: Transformer,
    choose: Callable[[str, Linear | Embedding], Scheme | None],
    *,
    scale_dtype: torch.dtype | None = None,
) -> Transformer:
    """Round the matrices of a dense network in place, one after the other, and return it.

    Args:
        choose: Given name and module, the scheme of it; None leaves it as it is. The embedding, which
            is also the head, is called "embed_tokens".
        scale_dtype: Of the scales; the weights' by default.

    Raises:
        ConfigError: A scheme does not fit the shape of its matrix, a weight is not finite, or a matrix is in few
            bits already.
    """
    if any(isinstance(module, Matrix) for module in network.modules()):
        raise ConfigError(
            "network must be dense; got one with matrices in few bits. Start from the model it was made of."
        )

    def change(name: str, linear: Linear) -> nn.Module:
        scheme = choose(name, linear)
        if scheme is None:
            return linear
        new = QuantizedLinear(quantize(linear.weight, scheme, scale_dtype=scale_dtype)).train(linear.training)
        new.delta = linear.delta
        return new

    network.replace_linears(change)
    table = network.embed_tokens
    scheme = choose("embed_tokens", table)
    if scheme is not None:
        q = quantize(table.weight, scheme, scale_dtype=scale_dtype)
        network.embed_tokens = QuantizedEmbedding(q).train(table.training)
    return network


def make_dense(network: Transformer, dtype: torch.dtype) -> Transformer:
    """Give a network the weights its matrices in few bits stand for, one after the other in place, and return it."""

    def change(_: str, linear: Linear) -> nn.Module:
        if not isinstance(linear, QuantizedLinear):
            return linear
        new = Linear(linear.d_in, linear.d_out, dtype=dtype, device="meta").train(linear.training)
        new.weight = nn.Parameter(dequantize(linear.quantized, dtype))
        new.delta = linear.delta
        return new

    network.replace_linears(change)
    table = network.embed_tokens
    if isinstance(table, QuantizedEmbedding):
        new = Embedding(*table.matrix.shape, dtype=dtype, device="meta").train(table.training)
        new.weight = nn.Parameter(dequantize(table.quantized, dtype))
        network.embed_tokens = new
    return network
