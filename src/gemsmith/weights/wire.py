"""config.json of the Hugging Face layout -> ModelConfig, in all spellings its writers have used.

A published file leaves out every key that equals the default of its transformers class, so those
defaults are part of the format.
"""

from collections.abc import Collection, Mapping
from typing import Any

from gemsmith.config import MAX_LAYERS, LayerSpec, ModelConfig
from gemsmith.errors import ConfigError
from gemsmith.weights.keys import CODE, FIXED, HARMLESS, TANH_GELU

# Source: the configuration classes of transformers 5.23 (models/gemma, gemma2, gemma3, vaultgemma).
_GEMMA2: dict[str, Any] = {
    "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "rope_theta": 10_000.0, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
_GEMMA1 = {
    "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16,
}  # fmt: skip
_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": _GEMMA2 | _CAPS | _GEMMA1 | {"query_pre_attn_scalar": None, "sliding_window": None},
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2
    | _CAPS
    | {"vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0}
    | {"rope_local_base_freq": 10_000.0},
    "vaultgemma": _GEMMA2,
}
MODEL_TYPES = frozenset({*DEFAULTS, "gemma3"})
_NORMS = {"gemma": "pre", "gemma2": "sandwich", "gemma3_text": "sandwich", "vaultgemma": "pre_ffw"}
FAMILIES = {"gemma3_text": "gemma3"}
# Other spellings of a key; where two stand in one file they must agree.
_SYNONYMS = {
    "sliding_window": ("sliding_window_size",),
    "sliding_window_pattern": ("_sliding_window_pattern",),
}
LAYER_KINDS = {"sliding_attention": "local", "full_attention": "global"}
# Layer i is global when i + 1 is a multiple of it, where the file does not list the layers.
_PATTERNS = {"gemma2": 2, "vaultgemma": 2, "gemma3_text": 6}


def parse_config(
    raw: Mapping[str, Any], *, allow_config_keys: Collection[str] = (), source: str = "config.json"
) -> ModelConfig:
    """Return the configuration a config.json describes.

    Args:
        raw: The parsed file.
        allow_config_keys: Unknown keys to pass over although they could change the numbers.
        source: What to call the file in errors.

    Raises:
        ConfigError: The model is of another kind, a key is unknown or has a value this network
            cannot compute; the key is named.
    """
    model_type = raw.get("model_type")
    if model_type == "gemma3":
        _check_keys(raw, {"text_config", "eos_token_id", "bos_token_id", "pad_token_id"}, allow_config_keys, source)
        inner = raw.get("text_config")
        if not isinstance(inner, Mapping):
            raise ConfigError(
                f"text_config must hold the text model of a 'gemma3'; got {inner!r} in {source}. Fetch the file again."
            )
        # The outer file speaks for the whole model where it names a special id.
        ids = {key: raw[key] for key in ("eos_token_id", "bos_token_id", "pad_token_id") if raw.get(key) is not None}
        raw, source = {**inner, **ids}, f"text_config of {source}"
        model_type = raw.get("model_type", "gemma3_text")
    if model_type not in DEFAULTS:
        raise ConfigError(
            f"model_type must be one of {', '.join(sorted(MODEL_TYPES))}; got {model_type!r} in {source}. "
            "Other kinds of model are not read by this version."
        )
    return _Reader(raw, model_type, source).config(allow_config_keys)


def pattern_words(pattern: int, n_layers: int) -> list[str]:
    """Return the kinds of layers of which every `pattern`-th is global."""
    every = pattern or n_layers + 1
    return ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(n_layers)]


def _check_keys(raw: Mapping[str, Any], read: Collection[str], allowed: Collection[str], source: str) -> None:
    """Refuse every key that is neither read nor known to be harmless."""
    for key, value in raw.items():
        if key in CODE:
            raise ConfigError(
                f"config.json must be data only; got {key!r}, which names code to run, in {source}. "
                "Use a checkpoint that needs none."
            )
        fixed = FIXED.get(key) or TANH_GELU.get(key)
        is_fixed = fixed is not None and value in fixed
        # Writers put null where a part is absent.
        if key in read or key in HARMLESS or key in allowed or value is None or is_fixed:
            continue
        if fixed is not None:
            raise ConfigError(
                f"{key} must be {' or '.join(map(repr, fixed))}; got {value!r} in {source}. "
                "This network computes nothing else."
            )
        raise ConfigError(
            f"config.json must hold known keys only; got {key!r} = {value!r} in {source}, which could change the "
            f"numbers. If you know it does not, pass --allow-config-key {key} (allow_config_keys=[{key!r}])."
        )


class _Reader:
    """One config.json of a text model, asked key by key."""

    def __init__(self, raw: Mapping[str, Any], model_type: str, source: str) -> None:
        self.raw, self.model_type, self.source = raw, model_type, source
        self.defaults = DEFAULTS[model_type]

    def config(self, allowed: Collection[str]) -> ModelConfig:
        """Return the whole configuration."""
        self._check(allowed)
        eos = self._get("eos_token_id")
        return ModelConfig(
            family=FAMILIES.get(self.model_type, self.model_type),
            vocab_size=self._count("vocab_size"),
            d_model=self._count("hidden_size"),
            max_seq_len=self._count("max_position_embeddings"),
            layers=self._layers(),
            norm_eps=self._number("rms_norm_eps"),
            final_softcap=self._cap("final_logit_softcapping"),
            bos_id=self._count("bos_token_id"),
            eos_ids=tuple(self._integer("eos_token_id", value) for value in (eos if isinstance(eos, list) else [eos])),
            pad_id=self._count("pad_token_id"),
        )

    def _check(self, allowed: Collection[str]) -> None:
        read = {key for key, value in self.defaults.items() if value is not None}
        read |= {"rope_theta", "rope_scaling", "rope_parameters"}
        if self.model_type != "gemma":
            read |= {"layer_types", *_CAPS}
        if self.model_type == "gemma3_text":
            read |= {"sliding_window_pattern"}
        read |= {spelling for key in read for spelling in _SYNONYMS.get(key, ())}
        _check_keys(self.raw, read, allowed, self.source)

    def _get(self, key: str) -> Any:
        """Return a value under any of its spellings, or the class default."""
        found = {name: self.raw[name] for name in (key, *_SYNONYMS.get(key, ())) if self.raw.get(name) is not None}
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise ConfigError(f"{' and '.join(found)} must agree; got {values} in {self.source}. Correct the file.")
        if values:
            return values[0]
        is_null = key in self.raw and key not in ("eos_token_id", "bos_token_id", "pad_token_id")
        return None if is_null else self.defaults.get(key)

    def _integer(self, key: str, value: Any, *, limit: int = 1 << 31) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{key} must be a whole number; got {value!r} in {self.source}. Correct the file.")
        if abs(value) > limit:
            raise ConfigError(f"{key} must be at most {limit}; got {value!r:.60} in {self.source}. Correct the file.")
        return value

    def _count(self, key: str) -> int:
        return self._integer(key, self._get(key))

    def _number(self, key: str, value: Any = None) -> float:
        value = self._get(key) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{key} must be a number; got {value!r} in {self.source}. Correct the file.")
        return float(self._integer(key, value) if isinstance(value, int) else value)

    def _cap(self, key: str) -> float | None:
        return None if self._get(key) is None else self._number(key)

    def _layers(self) -> tuple[LayerSpec, ...]:
        head_dim = self._count("head_dim")
        # Gemma 1 has no scalar of its own: it divides by the root of head_dim.
        scalar = self._number("query_pre_attn_scalar") if self.model_type != "gemma" else float(head_dim)
        if scalar <= 0:
            raise ConfigError(f"query_pre_attn_scalar must be positive; got {scalar!r} in {self.source}. Correct it.")
        made: dict[str, LayerSpec] = {}
        words = self._words()
        for word in set(words):
            theta, factor = self._rope(word)
            made[word] = LayerSpec(
                kind=LAYER_KINDS[word],
                n_heads=self._count("num_attention_heads"),
                n_kv_heads=self._count("num_key_value_heads"),
                head_dim=head_dim,
                d_ff=self._count("intermediate_size"),
                attn_scale=scalar**-0.5,
                window=self._count("sliding_window") if word == "sliding_attention" else None,
                attn_softcap=self._cap("attn_logit_softcapping"),
                rope_theta=theta,
                rope_factor=factor,
                has_qk_norm=self.model_type == "gemma3_text",
                norms=_NORMS[self.model_type],
            )
        return tuple(made[word] for word in words)

    def _words(self) -> list[str]:
        """Return the kind of every layer in transformers' words."""
        n_layers = self._integer("num_hidden_layers", self._get("num_hidden_layers"), limit=MAX_LAYERS)
        if self.model_type == "gemma":
            return ["full_attention"] * n_layers
        words = self.raw.get("layer_types")
        if words is None:
            pattern = self._get("sliding_window_pattern") or _PATTERNS[self.model_type]
            return pattern_words(self._integer("sliding_window_pattern", pattern), n_layers)
        if not isinstance(words, list) or len(words) != n_layers:
            raise ConfigError(
                f"layer_types must list {n_layers} layers; got {words!r} in {self.source}. Correct the file."
            )
        for word in words:
            if word not in LAYER_KINDS:
                raise ConfigError(
                    f"layer_types must hold {' or '.join(LAYER_KINDS)} only; got {word!r} in {self.source}. "
                    "Other kinds of layer are not read by this version."
                )
        return words

    def _rope(self, word: str) -> tuple[float, float]:
        """Return base and position divisor of a kind of layer."""
        theta_key = "rope_theta"
        parameters, scaling = self.raw.get("rope_parameters"), self.raw.get("rope_scaling")
        if self.model_type == "gemma3_text":
            parameters = self._node("rope_parameters", parameters, LAYER_KINDS).get(word)
            if word == "sliding_attention":
                # The old spelling scales the global layers only.
                scaling, theta_key = None, "rope_local_base_freq"
        known = ("rope_type", "type", "rope_theta", "factor")
        nodes = [self._node("rope_parameters", parameters, known), self._node("rope_scaling", scaling, known)]
        bases = [node.get("rope_theta") for node in nodes] + [self.raw.get(theta_key)]
        thetas = {self._number(theta_key, base) for base in bases if base is not None}
        factors = {self._rope_factor(node) for node in nodes if node}
        if len(thetas) > 1 or len(factors) > 1:
            raise ConfigError(
                f"rope_parameters, rope_scaling and {theta_key} must agree; got bases {sorted(thetas)} and factors "
                f"{sorted(factors)} for {word} in {self.source}. Correct the file."
            )
        return thetas.pop() if thetas else self.defaults[theta_key], factors.pop() if factors else 1.0

    def _rope_factor(self, node: Mapping[str, Any]) -> float:
        rope_type = node.get("rope_type") or node.get("type") or "default"
        if rope_type == "default":
            return 1.0
        if rope_type != "linear":
            raise ConfigError(
                f"rope_type must be 'default' or 'linear'; got {rope_type!r} in {self.source}. "
                "Other scalings are not read by this version."
            )
        return self._number("factor", node.get("factor"))

    def _node(self, name: str, node: Any, known: Collection[str]) -> Mapping[str, Any]:
        """Return a nested object once its keys are known ones; {} for null."""
        if node is None:
            return {}
        unknown = next((key for key in node if key not in known), None) if isinstance(node, Mapping) else node
        if unknown is not None:
            raise ConfigError(
                f"{name} must be an object of {', '.join(known)}; got {unknown!r} in {self.source}. Correct the file."
            )
        return node
