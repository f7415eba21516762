"""The network of every Gemma: embed, blocks, norm, head."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemsmith.config import ModelConfig
from gemsmith.errors import CacheError, ConfigError
from gemsmith.model import ops
from gemsmith.model.attention import Pass
from gemsmith.model.cache import KVCache
from gemsmith.model.layers import Embedding, build_layer
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear
from gemsmith.model.norm import RMSNorm

# Our words for places to look at -> the names their modules have in checkpoints.
_CAPTURE_NAMES = {"attention": "self_attn", "feed_forward": "mlp", "embedding": "embed_tokens"}


class Transformer(nn.Module):
    """A Gemma as a torch module; parameters have their published names, less the leading "model.".

    Attributes:
        is_recomputed: Blocks keep only their input for the backward pass and compute the rest again,
            for a third more arithmetic and far less memory.

    Args:
        config: What it is made of.
        dtype: Of the parameters, float32 by default.
        device: Where they lie; "meta" allocates nothing.
        build_layer: Function (config, index, dtype=, device=) -> block, for layer kinds of your own.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        build_layer: Callable[..., nn.Module] = build_layer,
    ) -> None:
        super().__init__()
        self.config = config
        self.is_recomputed = False
        self.embed_tokens = Embedding(config.vocab_size, config.d_model, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            build_layer(config, index, dtype=dtype, device=device) for index in range(config.n_layers)
        )
        self.norm = RMSNorm(config.d_model, config.norm_eps, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: the dtype of all parameters, but for matrices in few bits."""
        return self.norm.weight.dtype

    def forward(
        self, token_ids: Int[Tensor, "B T"], *, cache: KVCache | None = None, capture: Sequence[str] = ()
    ) -> Float[Tensor, "B T V"] | tuple[Float[Tensor, "B T V"], dict[str, Tensor]]:
        """Return the logits of every token, in float32.

        Rows are documents of their own: a thin view of the flat axis. With a cache, row b continues
        slot b.

        Args:
            capture: Places whose outputs to return too, such as "layers.3.attention",
                "layers.3.feed_forward", "layers.3", "layers.3.self_attn.q_proj", "embedding", "norm".

        Returns:
            Logits, or with `capture` the pair (logits, {place: its output, Float[B T ...]}).

        Raises:
            ConfigError: A place to capture does not exist.
        """
        n_rows, n_tokens = token_ids.shape
        starts = None if cache is None else cache.lengths[:n_rows].tolist()
        layout = Layout.packed([n_tokens] * n_rows, starts=starts, device=token_ids.device)
        with self._capturing(capture) as captured:
            hidden = self.hidden(token_ids.reshape(-1), layout, cache=cache)
        logits = self.logits(hidden).unflatten(0, (n_rows, n_tokens))
        if not capture:
            return logits
        return logits, {name: torch.cat(x).unflatten(0, (n_rows, n_tokens)) for name, x in captured.items()}

    def hidden(
        self,
        token_ids: Int[Tensor, " T"],
        layout: Layout,
        *,
        cache: KVCache | None = None,
        embeddings: Float[Tensor, "E D"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "T D"]:
        """Return the normalized state of every token: the one forward pass behind everything.

        Args:
            token_ids: Ids on one flat axis; -1 takes the next row of `embeddings` instead.
            layout: Document and position of each; with a cache, documents are its slots.
            cache: Earlier tokens; it is written to. Documents longer than its slack go in pieces.
            dtype: Of the arithmetic, the weights' by default; weights of another one are rounded where
                they are used, as float32 masters are in training.

        Raises:
            CacheError: The tokens do not continue the cache or do not fit it.
        """
        if cache is not None:
            for segment in layout.segments:
                cache.reserve(segment.slot, segment.position, segment.n_tokens)
        x = self.embed_tokens(token_ids, embeddings, dtype=dtype or self.dtype)
        longest = max(segment.n_tokens for segment in layout.segments)
        if cache is None or longest <= cache.max_chunk:
            return self._run(x, layout, cache)
        if layout.spans is not None:
            raise CacheError(
                f"a pass with spans must fit the cache's {cache.max_chunk} tokens at once; got {longest}. "
                "Make the cache with more slack."
            )
        out = torch.empty_like(x)
        for rows, piece in layout.chunks(cache.max_chunk):
            out[rows] = self._run(x[rows], piece, cache)
        return out

    def _run(self, x: Float[Tensor, "T D"], layout: Layout, cache: KVCache | None) -> Float[Tensor, "T D"]:
        step = Pass(layout, cache)
        for layer in self.layers:
            if self.is_recomputed and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(layer, x, step, use_reentrant=False, preserve_rng_state=False))
            else:
                x = layer(x, step)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T V"]:
        """Return the score of every piece after each state, capped where the model caps, in float32."""
        return ops.softcap(self.embed_tokens.scores(hidden).float(), self.config.final_softcap)

    def pack(self, *, release: Callable[[Tensor], None] = lambda _: None) -> None:
        """Bring every weight into its fastest form for inference here, one after the other.

        Args:
            release: Called with each tensor of a plain form once the packed one has taken its place.
        """
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        for module in (self.embed_tokens, *linears):  # the largest first, while there is least beside it
            stored = module.stored()
            if module.pack():
                for x in stored:
                    release(x)

    def replace_linears(self, change: Callable[[str, Linear], nn.Module]) -> None:
        """Put `change(name, linear)` in the place of every linear of every block."""
        found = [(name, module) for name, module in self.named_modules() if isinstance(module, Linear)]
        for name, module in found:
            parent, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(parent), attribute, change(name, module))

    @contextmanager
    def _capturing(self, places: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
        """Collect the outputs of the modules named, for as long as the context lasts."""
        captured: dict[str, list[Tensor]] = {name: [] for name in places}
        modules = dict(self.named_modules())
        hooks = []
        try:
            for name in places:
                path = ".".join(_CAPTURE_NAMES.get(part, part) for part in name.split("."))
                if path not in modules or not path:
                    raise ConfigError(
                        f"capture must name a part of the network; got {name!r}. Choose one such as 'layers.0', "
                        f"'layers.{self.config.n_layers - 1}.attention', 'layers.0.feed_forward' or 'norm'."
                    )
                keep = captured[name].append
                hooks.append(modules[path].register_forward_hook(lambda _m, _i, output, keep=keep: keep(output)))
            yield captured
        finally:
            for hook in hooks:
                hook.remove()
