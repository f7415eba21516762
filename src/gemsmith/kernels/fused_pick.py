"""One token per row of scores in one call: the fast equal of infer.sample.plain_pick."""

import ctypes
import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemsmith.kernels import native

# Of csrc/sample.h.
_PAGE = 64
_SCRATCH_BYTES = 20 * _PAGE + 16
# Scores that are worth another thread.
_STRIP = 1 << 15


class Tables(ctypes.Structure):
    """gs_history of csrc/sample.h. It points into tensors that its owner keeps."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("seen", "counts", "token_ids", "lengths")),
        *((name, ctypes.c_int64) for name in ("n_rows", "vocab_size")),
    ]

    @classmethod
    def of(
        cls, seen: Bool[Tensor, "B V"], counts: Float[Tensor, "B V"], token_ids: Int[Tensor, "B V"],
        lengths: Int[Tensor, " B"],
    ) -> "Tables":  # fmt: skip
        """Describe what each row has seen.

        Args:
            token_ids: int32; the first `lengths` of each row are those seen, each once.
        """
        return cls(seen.data_ptr(), counts.data_ptr(), token_ids.data_ptr(), lengths.data_ptr(), *seen.shape)

    def record(self, token_ids: Int[Tensor, " B"]) -> None:
        """Count one more token of each row."""
        assert len(token_ids) == self.n_rows
        token_ids = token_ids.long().contiguous()
        native.need().gs_record_tokens(ctypes.byref(self), token_ids.data_ptr())


class _Call(ctypes.Structure):
    """gs_pick_call of csrc/sample.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "streams", "positions", "chosen", "history")),
        *((name, ctypes.c_void_p) for name in ("bias_ids", "biases", "scratch")),
        *((name, ctypes.c_int64) for name in ("n_rows", "vocab_size", "row_stride", "n_biases", "n_strips", "top_k")),
        ("top_p", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("temperature", "lowest", "repetition", "presence", "frequency")),
    ]


class Rule:
    """How tokens are chosen, ready for the kernel, and room to work in: one per generation, one call at a time.

    Args:
        temperature: 0 is greedy.
        penalties: Of repetition, presence and frequency.
        biases: Added to the score of a token id.
    """

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int | None,
        top_p: float,
        min_p: float,
        penalties: tuple[float, float, float],
        biases: Mapping[int, float],
    ) -> None:
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32)
        self._bias_ids = torch.tensor(list(biases), dtype=torch.long)
        self._highest_id = max(biases, default=0)
        self._scratch = torch.empty(0, dtype=torch.uint8)
        lowest = math.log(min_p) if min_p > 0 else -math.inf
        self._call = _Call(
            bias_ids=self._bias_ids.data_ptr(), biases=self._biases.data_ptr(), n_biases=len(biases),
            top_k=2**62 if top_k is None else min(top_k, 2**62), top_p=top_p, temperature=temperature, lowest=lowest,
            repetition=penalties[0], presence=penalties[1], frequency=penalties[2],
        )  # fmt: skip
        self._reference = ctypes.byref(self._call)
        self._function = native.need().gs_pick
        self._shape = (0, 0)

    def serves(self, logits: Float[Tensor, "B V"]) -> bool:
        """Tell whether the kernel can choose from these scores."""
        return (
            logits.device.type == "cpu" and logits.shape[1] > self._highest_id
            and (logits.stride(1) == 1 or logits.shape[1] == 1)
        )  # fmt: skip

    def pick(
        self,
        logits: Float[Tensor, "B V"],
        *,
        streams: Int[Tensor, " B"],
        positions: Int[Tensor, " B"],
        seen: Tables | None,
    ) -> Int[Tensor, " B"]:
        """Return what plain_pick returns.

        Args:
            seen: What the rows have seen; None where nothing is penalized.
        """
        logits, streams, positions = logits.float(), streams.contiguous(), positions.contiguous()
        n_rows, vocab_size = logits.shape
        assert streams.dtype == positions.dtype == torch.long
        assert len(streams) == len(positions) == n_rows
        assert seen is None or (seen.n_rows, seen.vocab_size) == (n_rows, vocab_size)
        if self._shape != (n_rows, vocab_size):
            self._prepare(n_rows, vocab_size)
        chosen, call = torch.empty(n_rows, dtype=torch.long), self._call
        call.logits, call.row_stride = logits.data_ptr(), logits.stride(0)
        call.streams, call.positions, call.chosen = streams.data_ptr(), positions.data_ptr(), chosen.data_ptr()
        call.history = None if seen is None else ctypes.addressof(seen)
        self._function(self._reference)
        return chosen

    def _prepare(self, n_rows: int, vocab_size: int) -> None:
        """Make room for rows of this size."""
        threads = native.need().gs_max_threads()
        call = self._call
        call.n_rows, call.vocab_size = n_rows, vocab_size
        call.n_strips = max(1, min(n_rows, threads, n_rows * vocab_size // _STRIP))
        self._scratch = torch.empty(call.n_strips * -(-vocab_size // _PAGE) * _SCRATCH_BYTES, dtype=torch.uint8)
        call.scratch, self._shape = self._scratch.data_ptr(), (n_rows, vocab_size)
