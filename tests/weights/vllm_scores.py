"""Log-probabilities by vLLM, or its refusal: run by the Python of another environment, see test_vllm.py.

    python vllm_scores.py RUNS.json FOUND.json

A run names a folder, its token ids, and whether few bits are multiplied by vLLM's own product or by the plain one
below. Its builds for processors multiply 4 bits only, and in bfloat16 only; with the plain product, the rest of what it
does with such a folder is checked in float32: what it reads from config.json, the parameters it lays out, and which
tensors it loads into which of their rows.
"""

import gc
import json
import os
import sys
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

import torch
import torch.nn.functional as F
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.model_executor.kernels.linear import MPLinearKernel
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16

CHOOSE = compressed_tensors_wNa16.choose_mp_linear_kernel


class PlainProduct(MPLinearKernel):
    """y = x W^T with W as compressed-tensors defines it."""

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        words, scales, zeros = self._get_weight_params(layer)
        (d_in, d_out), kind = self.config.partition_weight_shape, self.config.weight_type
        values = unpacked(words, kind.size_bits)[:, :d_in].view(d_out, scales.shape[1], -1)
        if self.config.zero_points:
            values = values - unpacked(zeros.T, kind.size_bits).T[:d_out, :, None]
        else:
            values = values - kind.bias
        return F.linear(x, (values * scales[..., None]).view(d_out, d_in), bias)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the values in 32-bit words, the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits)
    return ((words.long()[..., None] >> shifts) & (2**bits - 1)).flatten(1)


def scores(folder: str, ids: list[int], dtype: str) -> list[list[float]]:
    """Return the log-probability of every token after each id but the last."""
    engine = LLM(
        folder, dtype=dtype, enforce_eager=True, max_model_len=64, max_num_seqs=1, max_logprobs=-1,
        skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 26,
    )  # fmt: skip
    wish = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1, detokenize=False)
    found = engine.generate([{"prompt_token_ids": ids}], wish, use_tqdm=False)[0].prompt_logprobs
    assert found is not None
    return [[row[token].logprob for token in range(len(row))] for row in found[1:] if row is not None]


def main() -> None:
    runs, out = sys.argv[1:]
    found = []
    with open(runs) as file:
        wanted = json.load(file)
    for run in wanted:
        compressed_tensors_wNa16.choose_mp_linear_kernel = (lambda _: PlainProduct) if run["is_plain"] else CHOOSE
        try:
            found.append({"logprobs": scores(run["folder"], run["ids"], "float32" if run["is_plain"] else "bfloat16")})
        except Exception as error:  # what it says is the result
            found.append({"refusal": f"{type(error).__name__}: {error}"})
        gc.collect()
        cleanup_dist_env_and_memory()
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
