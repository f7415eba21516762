"""A block and its parts, put together once from a LayerSpec; no forward asks which model it is in."""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemsmith.config import NORM_LAYOUTS, ModelConfig
from gemsmith.errors import ConfigError
from gemsmith.model import ops
from gemsmith.model.attention import Attention, Pass
from gemsmith.model.linear import Device, Linear, feed_forward
from gemsmith.model.norm import RMSNorm


class Embedding(nn.Module):
    """The table of token vectors, which is also the output head."""

    def __init__(self, n_rows: int, width: int, *, dtype: torch.dtype | None = None, device: Device = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, width, dtype=dtype, device=device))

    def stored(self) -> list[Tensor]:
        """Return the tensors the table lies in."""
        return [self.weight.detach()]

    def pack(self) -> bool:
        """Bring the table into the form that is fastest to multiply; False where it is in it."""
        return False

    def factors(self, hidden: Float[Tensor, "*T D"]) -> tuple[Float[Tensor, "*T D"], Float[Tensor, "V D"]]:
        """Return the two matrices whose product the scores are, for losses that never hold all of them."""
        return hidden, self.weight

    def scores(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Return hidden @ weight.T."""
        return ops.linear(hidden, self.weight)

    def forward(
        self,
        token_ids: Int[Tensor, " T"],
        embeddings: Float[Tensor, "E D"] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "T D"]:
        """Return scaled token vectors; ids of -1 take the rows of `embeddings` in order, unscaled.

        Args:
            dtype: Of the vectors, and so of all that follows; the table's by default.
        """
        if embeddings is None:
            return self._scaled(token_ids, dtype)
        given = token_ids < 0
        if int(given.sum()) != embeddings.shape[0]:
            raise ConfigError(
                f"embeddings must be as many as the ids of -1; got {embeddings.shape[0]} for {int(given.sum())}. "
                "Mark each place an embedding goes to with -1."
            )
        x = self._scaled(token_ids.clamp(min=0), dtype)
        return x.index_put((given.nonzero()[:, 0],), embeddings.to(x.dtype))

    def look_up(self, token_ids: Int[Tensor, " T"], dtype: torch.dtype | None) -> Float[Tensor, "T D"]:
        """Return rows of the table as they are stored, in the table's dtype by default."""
        return nn.functional.embedding(token_ids, self.weight).to(dtype or self.weight.dtype)

    def _scaled(self, token_ids: Int[Tensor, " T"], dtype: torch.dtype | None) -> Float[Tensor, "T D"]:
        x = self.look_up(token_ids, dtype)
        return x * ops.embedding_scale(x.shape[1], x.dtype)


class FeedForward(nn.Module):
    """GeGLU: down(gelu(gate(x)) * up(x))."""

    def __init__(
        self, config: ModelConfig, index: int, *, dtype: torch.dtype | None = None, device: Device = None
    ) -> None:
        super().__init__()
        d_ff = config.layers[index].d_ff
        self.gate_proj = Linear(config.d_model, d_ff, dtype=dtype, device=device)
        self.up_proj = Linear(config.d_model, d_ff, dtype=dtype, device=device)
        self.down_proj = Linear(d_ff, config.d_model, dtype=dtype, device=device)

    def forward(self, x: Float[Tensor, "T D"], step: Pass) -> Float[Tensor, "T D"]:
        """Return the layer's change of each token by itself."""
        adapters = step.layout.adapters
        return feed_forward(self.gate_proj, self.up_proj, self.down_proj, x, adapters)


class Block(nn.Module):
    """A residual stream with sublayers: x + after(body(before(x))) for each of them.

    Norms and bodies are submodules under the names checkpoints use; `steps` names them in order.
    """

    def __init__(self, parts: dict[str, nn.Module], steps: tuple[tuple[str, str, str | None], ...]) -> None:
        super().__init__()
        self.steps = steps
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Float[Tensor, "T D"], step: Pass) -> Float[Tensor, "T D"]:
        """Return the residual stream after the block."""
        parts = cast(dict[str, nn.Module], self._modules)
        for before, body, after in self.steps:
            y = parts[body](parts[before](x), step)
            x = x + y if after is None else _norm_add(x, y, cast(RMSNorm, parts[after]))
        return x


def _norm_add(x: Float[Tensor, "T D"], y: Float[Tensor, "T D"], norm: RMSNorm) -> Float[Tensor, "T D"]:
    """Return x + norm(y), in one pass over memory unless someone looks at the norm itself."""
    is_watched = bool(norm._forward_hooks or norm._forward_pre_hooks)
    return x + norm(y) if is_watched else norm.added(x, y)


def build_layer(config: ModelConfig, index: int, *, dtype: torch.dtype | None = None, device: Device = None) -> Block:
    """Assemble block `index` from its LayerSpec.

    Another kind of layer is another function of this signature, given to Transformer, which may
    fall back on this one for the kinds it does not know.

    Raises:
        ConfigError: The kind is neither "local" nor "global".
    """
    spec = config.layers[index]
    if spec.kind not in ("local", "global"):
        raise ConfigError(
            f"kind must be 'local' or 'global'; got {spec.kind!r} in layer {index}. Give Transformer a build_layer "
            "that knows this kind."
        )
    parts: dict[str, nn.Module] = {
        "self_attn": Attention(config, index, dtype=dtype, device=device),
        "mlp": FeedForward(config, index, dtype=dtype, device=device),
    }
    steps = []
    for body, (before, after) in zip(("self_attn", "mlp"), NORM_LAYOUTS[spec.norms], strict=True):
        for name in (before, after):
            if name is not None:
                parts[name] = RMSNorm(config.d_model, config.norm_eps, dtype=dtype, device=device)
        steps.append((before, body, after))
    return Block(parts, tuple(steps))
