"""What a Gemma is made of: ModelConfig, its layers, and the presets of the family.

A model is a few global numbers and one LayerSpec per block. Nothing downstream asks which
generation a model belongs to: Gemma 1 to 3 differ only by the values written here.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from gemsmith.errors import ConfigError, ModelNotFoundError

# A file that says more is damaged; the largest member of the family has 62.
MAX_LAYERS = 512
_MAX_DIVISOR = 256

# Which norms stand before and after (attention, feed-forward) under the names checkpoints use. In
# Gemma 1 `post_attention_layernorm` is, in spite of its name, the norm before the feed-forward.
NORM_LAYOUTS: dict[str, tuple[tuple[str, str | None], tuple[str, str | None]]] = {
    "pre": (("input_layernorm", None), ("post_attention_layernorm", None)),
    "pre_ffw": (("input_layernorm", None), ("pre_feedforward_layernorm", None)),
    "sandwich": (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}


def _divisors(count: int) -> list[int]:
    """Return the divisors of a count that a message can name; a damaged file's count may be any number."""
    return [k for k in range(1, min(count, _MAX_DIVISOR) + 1) if count % k == 0]


@dataclass(frozen=True)
class LayerSpec:
    """One block of the network.

    Attributes:
        kind: "local" (sees `window` keys, its own included) or "global" (sees them all); any other
            word is for a caller's own block builder.
        window: Number of visible keys of a local layer, None for a global one.
        d_ff: Width of one of the two feed-forward input matrices.
        attn_scale: Multiplier on q.k; it is not always head_dim ** -0.5.
        attn_softcap: Scores become cap * tanh(score / cap); None is the only way to switch it off.
        rope_theta: Base of the rotary angles.
        rope_factor: Positions are divided by it before rotation (linear scaling).
        norms: A key of NORM_LAYOUTS.
        kv_source: Earlier layer whose keys and values this one reuses; it then has none of its own.
    """

    kind: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    attn_scale: float
    window: int | None = None
    attn_softcap: float | None = None
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    has_qk_norm: bool = False
    norms: str = "sandwich"
    kv_source: int | None = None

    def __post_init__(self) -> None:
        if min(self.n_heads, self.n_kv_heads, self.head_dim, self.d_ff) < 1:
            raise ConfigError(
                f"n_heads, n_kv_heads, head_dim and d_ff must be at least 1; got {self.n_heads}, "
                f"{self.n_kv_heads}, {self.head_dim} and {self.d_ff}. Check the model's configuration."
            )
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads must be a multiple of n_kv_heads; got {self.n_heads} and {self.n_kv_heads}. "
                f"Use n_kv_heads of {', '.join(map(str, _divisors(self.n_heads)))}."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions; got {self.head_dim}. Use an even size.")
        if (self.kind == "local") != (self.window is not None) and self.kind in ("local", "global"):
            raise ConfigError(
                f"window must be a number for a local layer and None for a global one; got {self.window!r} "
                f"in a {self.kind!r} layer. Set both together."
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window must be at least 1 (a token sees itself); got {self.window}. Use None for all.")
        for name in ("attn_softcap", "rope_theta", "rope_factor", "attn_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"{name} must be a positive number; got {value!r}. "
                    f"{'Use None to switch the cap off.' if name == 'attn_softcap' else 'Check the configuration.'}"
                )
        if self.norms not in NORM_LAYOUTS:
            known = ", ".join(NORM_LAYOUTS)
            raise ConfigError(f"norms must be one of {known}; got {self.norms!r}. Choose one of them.")

    def n_params(self, d_model: int) -> int:
        """Count this block's parameters for a residual width of `d_model`."""
        attention = 2 * d_model * self.n_heads * self.head_dim
        if self.kv_source is None:
            attention += 2 * d_model * self.n_kv_heads * self.head_dim
        if self.has_qk_norm:
            attention += self.head_dim * (2 if self.kv_source is None else 1)
        n_norms = sum(name is not None for places in NORM_LAYOUTS[self.norms] for name in places)
        return attention + 3 * d_model * self.d_ff + n_norms * d_model


@dataclass(frozen=True)
class ModelConfig:
    """A whole network: global numbers and a tuple of blocks.

    Attributes:
        family: Name of the generation ("gemma", "gemma2", "gemma3", "vaultgemma"); it chooses file
            layouts and chat templates, never arithmetic.
        final_softcap: Logits become cap * tanh(logits / cap); None switches it off.
        eos_ids: Ids that end a text; the first one is the tokenizer's `<eos>`.
    """

    family: str
    vocab_size: int
    d_model: int
    max_seq_len: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float = 1e-6
    final_softcap: float | None = None
    bos_id: int = 2
    eos_ids: tuple[int, ...] = (1,)
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}. Check the configuration.")
        # From 1 on nothing would be left of a vector; NaN is no number between.
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps must lie between 0 and 1; got {self.norm_eps!r}. Gemma has 1e-6.")
        if not self.layers:
            raise ConfigError("layers must hold at least one LayerSpec; got none. Give the network a block.")
        if self.final_softcap is not None and not (math.isfinite(self.final_softcap) and self.final_softcap > 0):
            raise ConfigError(
                f"final_softcap must be a positive number; got {self.final_softcap!r}. Use None to switch the cap off."
            )
        special = [("bos_id", self.bos_id), ("pad_id", self.pad_id), *(("eos_ids", e) for e in self.eos_ids)]
        for name, token_id in special:
            if not 0 <= token_id < self.vocab_size:
                raise ConfigError(
                    f"{name} must lie within the {self.vocab_size} rows of the embedding; got {token_id}. "
                    "Check vocab_size and the special ids."
                )
        for index, layer in enumerate(self.layers):
            self._check_source(index, layer)

    def _check_source(self, index: int, layer: LayerSpec) -> None:
        if layer.kv_source is None:
            return
        if not 0 <= layer.kv_source < index or self.layers[layer.kv_source].kv_source is not None:
            raise ConfigError(
                f"kv_source must name an earlier layer with keys of its own; got {layer.kv_source} in layer {index}. "
                "Point it at the layer that computes them."
            )
        source = self.layers[layer.kv_source]
        if (source.n_kv_heads, source.head_dim, source.window) != (layer.n_kv_heads, layer.head_dim, layer.window):
            raise ConfigError(
                f"kv_source must name a layer of the same heads and window; got layer {layer.kv_source} for layer "
                f"{index}. Local layers share with local ones, global with global."
            )

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def n_params(self) -> int:
        """Number of parameters, the embedding counted once (it is also the output head)."""
        blocks = sum(layer.n_params(self.d_model) for layer in self.layers)
        return self.vocab_size * self.d_model + blocks + self.d_model

    @property
    def largest_matrix(self) -> int:
        """Number of weights in the largest matrix."""
        rows = (max(x.n_heads * x.head_dim, x.n_kv_heads * x.head_dim, x.d_ff) for x in self.layers)
        return self.d_model * max(self.vocab_size, *rows)

    def replace(self, **changes: object) -> "ModelConfig":
        """Return a copy with some fields changed."""
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]


def _gemma1(*, d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> ModelConfig:
    """Source: Gemma report, arXiv:2403.08295, table 1 (it counts both gate matrices in the width)."""
    layer = LayerSpec("global", n_heads, n_kv_heads, 256, d_ff, attn_scale=256**-0.5, norms="pre")
    return ModelConfig("gemma", 256_000, d_model, 8192, (layer,) * n_layers)


def _gemma2(*, d_model: int, n_layers: int, n_heads: int, head_dim: int, d_ff: int, scalar: int) -> ModelConfig:
    """Source: Gemma 2 report, arXiv:2408.00118, table 1 and section 2; `scalar` is the square of 1 / attn_scale."""
    local = LayerSpec(
        "local", n_heads, n_heads // 2, head_dim, d_ff, attn_scale=scalar**-0.5, window=4096, attn_softcap=50.0
    )
    both = (local, replace(local, kind="global", window=None))
    return ModelConfig("gemma2", 256_000, d_model, 8192, both * (n_layers // 2), final_softcap=30.0)


def _gemma3(
    *, d_model: int, n_layers: int, local: LayerSpec, rope_factor: float = 8.0, max_seq_len: int = 131_072
) -> ModelConfig:
    """Source: Gemma 3 report, arXiv:2503.19786, section 2: five local layers, then a global one."""
    wide = replace(local, kind="global", window=None, rope_theta=1_000_000.0, rope_factor=rope_factor)
    layers = tuple(wide if (index + 1) % 6 == 0 else local for index in range(n_layers))
    return ModelConfig("gemma3", 262_144, d_model, max_seq_len, layers)


def _local3(
    n_heads: int, n_kv_heads: int, d_ff: int, *, window: int = 1024, head_dim: int = 256, scalar: int = 256
) -> LayerSpec:
    """Return a local layer of Gemma 3."""
    return LayerSpec(
        "local", n_heads, n_kv_heads, head_dim, d_ff, attn_scale=scalar**-0.5, window=window, has_qk_norm=True
    )


def _small_gemma3(*, d_model: int, n_layers: int, d_ff: int) -> ModelConfig:
    """Source: model cards of Gemma 3 270M and 1B: a window of 512, positions as they are."""
    local = _local3(4, 1, d_ff, window=512)
    return _gemma3(d_model=d_model, n_layers=n_layers, local=local, rope_factor=1.0, max_seq_len=32_768)


def _vaultgemma() -> ModelConfig:
    """Source: VaultGemma model card: Gemma 2 attention in full everywhere, no norm after a sublayer."""
    layer = LayerSpec("global", 4, 4, 256, 6912, attn_scale=256**-0.5, attn_softcap=50.0, norms="pre_ffw")
    return ModelConfig("vaultgemma", 256_000, 1152, 1024, (layer,) * 26, final_softcap=30.0)


ARCHITECTURES: dict[str, Callable[[], ModelConfig]] = {
    "gemma-2b": lambda: _gemma1(d_model=2048, n_layers=18, n_heads=8, n_kv_heads=1, d_ff=16_384),
    "gemma-7b": lambda: _gemma1(d_model=3072, n_layers=28, n_heads=16, n_kv_heads=16, d_ff=24_576),
    "gemma-2-2b": lambda: _gemma2(d_model=2304, n_layers=26, n_heads=8, head_dim=256, d_ff=9216, scalar=256),
    "gemma-2-9b": lambda: _gemma2(d_model=3584, n_layers=42, n_heads=16, head_dim=256, d_ff=14_336, scalar=256),
    "gemma-2-27b": lambda: _gemma2(d_model=4608, n_layers=46, n_heads=32, head_dim=128, d_ff=36_864, scalar=144),
    "gemma-3-270m": lambda: _small_gemma3(d_model=640, n_layers=18, d_ff=2048),
    "gemma-3-1b": lambda: _small_gemma3(d_model=1152, n_layers=26, d_ff=6912),
    "gemma-3-4b": lambda: _gemma3(d_model=2560, n_layers=34, local=_local3(8, 4, 10_240)),
    "gemma-3-12b": lambda: _gemma3(d_model=3840, n_layers=48, local=_local3(16, 8, 15_360)),
    "gemma-3-27b": lambda: _gemma3(d_model=5376, n_layers=62, local=_local3(32, 16, 21_504, head_dim=128, scalar=168)),
    "vaultgemma-1b": _vaultgemma,
}

# Published checkpoint -> (architecture, the name KerasHub gives it).
PUBLISHED: dict[str, tuple[str, str | None]] = {
    "google/gemma-2b": ("gemma-2b", "gemma_2b_en"),
    "google/gemma-2b-it": ("gemma-2b", "gemma_instruct_2b_en"),
    "google/gemma-1.1-2b-it": ("gemma-2b", "gemma_1.1_instruct_2b_en"),
    "google/codegemma-2b": ("gemma-2b", "code_gemma_2b_en"),
    "google/codegemma-1.1-2b": ("gemma-2b", "code_gemma_1.1_2b_en"),
    "google/gemma-7b": ("gemma-7b", "gemma_7b_en"),
    "google/gemma-7b-it": ("gemma-7b", "gemma_instruct_7b_en"),
    "google/gemma-1.1-7b-it": ("gemma-7b", "gemma_1.1_instruct_7b_en"),
    "google/codegemma-7b": ("gemma-7b", "code_gemma_7b_en"),
    "google/codegemma-7b-it": ("gemma-7b", "code_gemma_instruct_7b_en"),
    "google/codegemma-1.1-7b-it": ("gemma-7b", "code_gemma_1.1_instruct_7b_en"),
    "google/gemma-2-2b": ("gemma-2-2b", "gemma2_2b_en"),
    "google/gemma-2-2b-it": ("gemma-2-2b", "gemma2_instruct_2b_en"),
    "google/gemma-2-2b-jpn-it": ("gemma-2-2b", None),
    "google/gemma-2-9b": ("gemma-2-9b", "gemma2_9b_en"),
    "google/gemma-2-9b-it": ("gemma-2-9b", "gemma2_instruct_9b_en"),
    "google/gemma-2-27b": ("gemma-2-27b", "gemma2_27b_en"),
    "google/gemma-2-27b-it": ("gemma-2-27b", "gemma2_instruct_27b_en"),
    "google/shieldgemma-2b": ("gemma-2-2b", "shieldgemma_2b_en"),
    "google/shieldgemma-9b": ("gemma-2-9b", "shieldgemma_9b_en"),
    "google/shieldgemma-27b": ("gemma-2-27b", "shieldgemma_27b_en"),
    "google/gemma-3-270m": ("gemma-3-270m", "gemma3_270m"),
    "google/gemma-3-270m-it": ("gemma-3-270m", "gemma3_instruct_270m"),
    "google/functiongemma-270m-it": ("gemma-3-270m", "function_gemma_instruct_270m"),
    "google/gemma-3-1b-pt": ("gemma-3-1b", "gemma3_1b"),
    "google/gemma-3-1b-it": ("gemma-3-1b", "gemma3_instruct_1b"),
    "google/gemma-3-4b-pt": ("gemma-3-4b", "gemma3_4b"),
    "google/gemma-3-4b-it": ("gemma-3-4b", "gemma3_instruct_4b"),
    "google/gemma-3-12b-pt": ("gemma-3-12b", "gemma3_12b"),
    "google/gemma-3-12b-it": ("gemma-3-12b", "gemma3_instruct_12b"),
    "google/gemma-3-27b-pt": ("gemma-3-27b", "gemma3_27b"),
    "google/gemma-3-27b-it": ("gemma-3-27b", "gemma3_instruct_27b"),
    "google/vaultgemma-1b": ("vaultgemma-1b", "vault_gemma_1b_en"),
}


def canonical_name(name: str) -> str:
    """Return the hub name of a model known under another name, or `name` itself."""
    for hub_name, (_, keras_name) in PUBLISHED.items():
        if name in (hub_name, keras_name, hub_name.removeprefix("google/")):
            return hub_name
    return name


@cache
def preset(name: str) -> ModelConfig:
    """Return the configuration of a member of the family.

    Args:
        name: An architecture ("gemma-2-2b"), a hub name ("google/gemma-2-2b-it") or a KerasHub
            preset ("gemma_2b_en").

    Raises:
        ModelNotFoundError: Nobody published a model of that name; the nearest names are offered.
    """
    architecture = PUBLISHED.get(canonical_name(name), (name, None))[0]
    if architecture not in ARCHITECTURES:
        raise ModelNotFoundError(
            f"model must be a known member of the family; got {name!r}. Did you mean {', '.join(nearest_names(name))}?"
        )
    return ARCHITECTURES[architecture]()


def nearest_names(name: str, extra: tuple[str, ...] = ()) -> list[str]:
    """Return up to three known names that look like `name`, the nearest first."""
    known = [*extra, *ARCHITECTURES, *PUBLISHED, *(keras for _, keras in PUBLISHED.values() if keras)]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.4) or ["pebble", "google/gemma-2-2b-it"]
