"""Are these two the same model? Configuration, tokenizer, every layer, logits and perplexity, compared."""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.errors import ConfigError, DataError
from gemsmith.weights.parity_texts import PROBE, fuzz_texts
from gemsmith.weights.subjects import Subject, Trace, open_subject

MAX_TOKENS = 512  # of one pass
_MAX_LOGITS = 1 << 26  # numbers of one side's logits, 256 MB
_N_SHOWN = 10


@dataclass(frozen=True)
class Tolerances:
    """What rounding may do; everything beyond is a difference.

    Attributes:
        layer: Largest error of a state, in units of the root mean square of its layer.
        logit: Largest error of a logit.
        kl: Mean divergence of the next-token distributions, in nats.
    """

    layer: float
    logit: float
    kl: float


# Float32 sums in another order differ by about 1e-6 of their size per layer, bfloat16 by 4e-3.
TOLERANCES = {"float32": Tolerances(2e-3, 1e-3, 1e-6), "bfloat16": Tolerances(0.25, 0.5, 2e-2)}


@dataclass(frozen=True)
class Difference:
    """One value the two configurations disagree about, such as "layers.3.window"."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class TextDifference:
    """One text the two tokenizers encode differently; None where there is no tokenizer."""

    text: str
    ids_a: tuple[int, ...] | None
    ids_b: tuple[int, ...] | None


@dataclass(frozen=True)
class LayerError:
    """How far two states of one place are apart.

    Attributes:
        max_error: Largest absolute difference.
        scale: Root mean square of the first model's state, to judge the error by.
        token: First token whose error is beyond the tolerance, None if none is.
    """

    place: str
    max_error: float
    scale: float
    token: int | None


@dataclass(frozen=True)
class Divergence:
    """Where two networks part first."""

    layer: str
    token: int
    token_id: int


@dataclass(frozen=True)
class ParityReport:
    """What a comparison found.

    Attributes:
        dtype: What both sides computed in; the tolerances depend on it.
        tokenizer_differences: The first few; `n_tokenizer_differences` of `n_texts` in all.
        layers: Errors after the embedding and each layer, as far as shapes allow.
        logit_kl: Mean KL(a || b) of the next-token distributions, in nats.
        ppl_a: Perplexity per token on the given text, in windows of `ppl_window` tokens.
    """

    a: str
    b: str
    dtype: str
    tolerances: Tolerances
    config_differences: tuple[Difference, ...]
    tokenizer_differences: tuple[TextDifference, ...]
    n_tokenizer_differences: int
    n_texts: int
    n_tokens: int
    layers: tuple[LayerError, ...]
    max_logit_error: float
    logit_kl: float
    first_divergence: Divergence | None
    ppl_a: float | None = None
    ppl_b: float | None = None
    ppl_window: int | None = None

    @property
    def same(self) -> bool:
        """Whether nothing found distinguishes the two beyond rounding."""
        return (
            not self.config_differences
            and self.n_tokenizer_differences == 0
            and self.first_divergence is None
            and self.max_logit_error <= self.tolerances.logit
            and self.logit_kl <= self.tolerances.kl
        )

    @property
    def max_error_by_layer(self) -> dict[str, float]:
        """Largest absolute error after each place."""
        return {layer.place: layer.max_error for layer in self.layers}

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; what is not a number becomes None."""
        return _json_ready({"same": self.same, **asdict(self), "max_error_by_layer": self.max_error_by_layer})


def compare(
    a: str | Path, b: str | Path, *, text: str | None = None, dtype: torch.dtype | str = "float32"
) -> ParityReport:
    """Compare two models; they are loaded one after the other.

    Args:
        a: A folder, a pulled name, "pebble", or "transformers:" and a folder to have it read by
            that library.
        text: Text to measure the perplexity of both on, which also becomes the text the layers are
            compared on; a built-in one by default.
        dtype: What both compute in; float32 tells weights that differ from sums that round differently.

    Raises:
        GemsmithError: One of them cannot be loaded.
        DataError: The text is too short to be scored.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in TOLERANCES:
        raise ConfigError(f"dtype must be one of {', '.join(TOLERANCES)}; got {name!r}. Choose one of them.")
    if text is not None and not text.strip():
        raise DataError(f"text must hold words to measure perplexity on; got {text!r}. Give another file.")
    first = _examine(str(a), None, text, getattr(torch, name))
    second = _examine(str(b), first.probe, text, getattr(torch, name))
    limits = TOLERANCES[name]
    differing = [TextDifference(*x) for x in zip(fuzz_texts(), first.ids, second.ids, strict=True) if x[1] != x[2]]
    layers = tuple(_layer_errors(first.trace, second.trace, limits.layer))
    max_logit_error, logit_kl = _logit_errors(first.trace.logits, second.trace.logits)
    return ParityReport(
        a=str(a),
        b=str(b),
        dtype=name,
        tolerances=limits,
        config_differences=tuple(_config_differences(first.config, second.config)),
        tokenizer_differences=tuple(differing[:_N_SHOWN]),
        n_tokenizer_differences=len(differing),
        n_texts=len(first.ids),
        n_tokens=len(first.probe),
        layers=layers,
        max_logit_error=max_logit_error,
        logit_kl=logit_kl,
        first_divergence=_first_divergence(layers, first.trace, second.trace, first.probe, limits.logit),
        ppl_a=first.ppl,
        ppl_b=second.ppl,
        ppl_window=None if text is None else _window(first.config),
    )


@dataclass(frozen=True)
class _Findings:
    """What is kept of one side when its weights are gone."""

    config: ModelConfig
    ids: list[tuple[int, ...] | None]
    probe: list[int]
    trace: Trace
    ppl: float | None


@torch.inference_mode()
def _examine(name: str, probe: list[int] | None, text: str | None, dtype: torch.dtype) -> _Findings:
    """Load one side, ask it everything, and let it go."""
    subject = open_subject(name, dtype)
    encode = subject.encode
    ids = [None if encode is None else tuple(encode(fuzz)) for fuzz in fuzz_texts()]
    probe = _probe(subject, text) if probe is None else probe
    # A side with fewer rows or a shorter context is run on what it can take.
    fitting = [token_id % subject.config.vocab_size for token_id in probe][: subject.config.max_seq_len]
    trace = subject.trace(fitting)
    ppl = None if text is None else _perplexity(subject, text)
    config = subject.config
    del subject, encode
    gc.collect()
    return _Findings(config, ids, probe, trace, ppl)


def _probe(subject: Subject, text: str | None) -> list[int]:
    """Return the ids both networks are run on: real text where there is a tokenizer."""
    config = subject.config
    if subject.encode is None:
        step = 7919  # prime, so that the ids run through the vocabulary
        words = [(index * step) % config.vocab_size for index in range(1, MAX_TOKENS)]
    else:
        words = subject.encode((text or PROBE)[: 16 * MAX_TOKENS])
    return [config.bos_id, *words][: _window(config)]


def _window(config: ModelConfig) -> int:
    return min(MAX_TOKENS, config.max_seq_len, max(2, _MAX_LOGITS // config.vocab_size))


def _perplexity(subject: Subject, text: str) -> float:
    """Return exp of the mean negative log-likelihood, each window after a BOS of its own."""
    if subject.encode is None:
        raise DataError(
            f"model must have a tokenizer to measure perplexity; got none in {subject.name!r}. Add its file."
        )
    token_ids, n = subject.encode(text), _window(subject.config) - 1
    total = 0.0
    for start in range(0, len(token_ids), n):
        window = [subject.config.bos_id, *token_ids[start : start + n]]
        logprobs = subject.trace(window).logits[:-1].double().log_softmax(-1)
        total -= logprobs.gather(1, torch.tensor(window[1:])[:, None]).sum().item()
    return math.exp(total / len(token_ids))


def _config_differences(a: ModelConfig, b: ModelConfig) -> Iterator[Difference]:
    for field in fields(ModelConfig):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        if field.name != "layers":
            if ours != theirs:
                yield Difference(field.name, ours, theirs)
            continue
        if len(ours) != len(theirs):
            yield Difference("n_layers", len(ours), len(theirs))
        for index, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            for name in (f.name for f in fields(x)):
                if getattr(x, name) != getattr(y, name):
                    yield Difference(f"layers.{index}.{name}", getattr(x, name), getattr(y, name))


def _layer_errors(a: Trace, b: Trace, tolerance: float) -> Iterator[LayerError]:
    for place in a.places:
        x, y = a.places[place], b.places.get(place)
        if y is None or x.shape[1] != y.shape[1]:
            return
        n = min(len(x), len(y))
        x, y = x[:n], y[:n]
        scale = x.double().square().mean().sqrt().item()
        error = (x - y).abs().amax(-1)
        beyond = (~(error <= tolerance * scale)).nonzero()  # NaN is beyond
        yield LayerError(place, error.max().item(), scale, int(beyond[0]) if len(beyond) else None)


def _logit_errors(a: Float[Tensor, "T V"], b: Float[Tensor, "S U"]) -> tuple[float, float]:
    """Return the largest error, and the mean divergence, over the tokens and rows both have."""
    a, b = _common(a, b)
    total = 0.0
    for x, y in zip(a.split(32), b.split(32), strict=True):
        p, q = x.double().log_softmax(-1), y.double().log_softmax(-1)
        total += (p.exp() * (p - q)).sum().item()
    return (a - b).abs().max().item(), total / len(a)


def _common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    n_tokens, n_rows = (min(a.shape[i], b.shape[i]) for i in (0, 1))
    return a[:n_tokens, :n_rows], b[:n_tokens, :n_rows]


def _first_divergence(
    layers: Sequence[LayerError], a: Trace, b: Trace, probe: Sequence[int], tolerance: float
) -> Divergence | None:
    for layer in layers:
        if layer.token is not None:
            return Divergence(layer.place, layer.token, probe[layer.token])
    ours, theirs = _common(a.logits, b.logits)
    error = (ours - theirs).abs().amax(-1)
    beyond = (~(error <= tolerance)).nonzero()
    return Divergence("logits", int(beyond[0]), probe[int(beyond[0])]) if len(beyond) else None


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_ready(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
