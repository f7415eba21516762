"""What one call of generate or stream asks for: gathered from its keywords, checked once."""

import secrets
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from gemsmith.errors import SamplingError
from gemsmith.infer.prompt_cache import PromptCache
from gemsmith.infer.sample import Sampling

Cancel = threading.Event | Callable[[], bool]
DEFAULT_MAX_NEW_TOKENS = 256
_SAMPLING_WORDS = ("temperature", "top_k", "top_p", "seed")
_SEED_BITS = 53  # whole in JSON, whose numbers are float64


class Options(TypedDict, total=False):
    """The keywords of `LM.generate` and `LM.stream`, all of them optional."""

    max_new_tokens: int
    sampling: Sampling
    temperature: float
    top_k: int | None
    top_p: float
    seed: int | None
    stop: str | Sequence[str]
    stop_ids: Collection[int]
    top_logprobs: int | None
    cancel: Cancel | None
    first_index: int
    prompt_cache: PromptCache | None


@dataclass(frozen=True)
class Settings:
    """One call's wishes, in order.

    Attributes:
        sampling: With its seed drawn.
        n: Completions of each prompt.
        first_index: Number of the first of them; with the seed it says which noise they get.
        stop_ids: Ids that end a completion: the model's and the caller's.
        top_logprobs: Alternatives to report per token; None reports no log-probabilities at all.
        is_cancelled: Asked before every step.
        prompt_cache: A prompt that was read before, of which the beginning may be shared.
    """

    max_new_tokens: int
    sampling: Sampling
    n: int
    first_index: int
    stop: tuple[str, ...]
    stop_ids: frozenset[int]
    top_logprobs: int | None
    is_cancelled: Callable[[], bool]
    prompt_cache: PromptCache | None = None


def gather(options: Options, *, n: int, default: Sampling, stop_ids: frozenset[int], n_pieces: int) -> Settings:
    """Check the keywords of one call.

    Args:
        default: Sampling where the call brings none of its own.
        stop_ids: The model's.
        n_pieces: Pieces of the vocabulary; ids must lie below it.

    Raises:
        SamplingError: A setting is outside its range.
        TypeError: There is no such keyword.
    """
    unknown = set(options) - Options.__optional_keys__
    if unknown:
        raise TypeError(f"generate has no keyword {sorted(unknown)[0]!r}. It has {', '.join(Options.__annotations__)}.")
    sampling = options.get("sampling", default)
    changes: dict[str, Any] = {name: value for name, value in options.items() if name in _SAMPLING_WORDS}
    sampling = replace(sampling, **changes)
    if sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(_SEED_BITS))
    max_new_tokens = options.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    _check_at_least("max_new_tokens", max_new_tokens, 1, "Leave it out for a default.")
    _check_at_least("n", n, 1, "Ask for one completion or more.")
    first_index = options.get("first_index", 0)
    _check_at_least("first_index", first_index, 0, "The first completion has the index 0.")
    top_logprobs = options.get("top_logprobs")
    if top_logprobs is not None:
        _check_at_least("top_logprobs", top_logprobs, 0, "0 reports the chosen tokens only.")
        top_logprobs = min(top_logprobs, n_pieces)
    own_ids = options.get("stop_ids", ())
    _check_ids("stop_ids", own_ids, n_pieces)
    _check_ids("logit_bias", sampling.logit_bias, n_pieces)
    stop, cancel = _stop_strings(options.get("stop", ())), _asker(options.get("cancel"))
    return Settings(
        max_new_tokens, sampling, n, first_index, stop, stop_ids | frozenset(own_ids), top_logprobs, cancel,
        options.get("prompt_cache"),
    )  # fmt: skip


def _check_at_least(name: str, value: object, low: int, way_out: str) -> None:
    if type(value) is not int or value < low:
        raise SamplingError(f"{name} must be an integer of at least {low}; got {value!r}. {way_out}")


def _check_ids(name: str, token_ids: Collection[int], n_pieces: int) -> None:
    for token_id in token_ids:
        if type(token_id) is not int or not 0 <= token_id < n_pieces:
            raise SamplingError(
                f"{name} must hold ids of the {n_pieces} pieces of the vocabulary; got {token_id!r}. "
                "lm.tokenizer.id_of(piece) gives one."
            )


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise SamplingError(
                f"stop must hold texts that are not empty; got {string!r}. Leave it out to stop at none."
            )
    return strings


def _asker(cancel: Cancel | None) -> Callable[[], bool]:
    """Return a function that tells whether to stop."""
    if cancel is None:
        return lambda: False
    return cancel.is_set if isinstance(cancel, threading.Event) else cancel
