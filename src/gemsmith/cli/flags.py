"""Options several verbs share, gathered into the dataclasses they become."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from gemsmith.infer.lm import LM
    from gemsmith.infer.sample import Sampling

ModelName = Annotated[
    str,
    Parameter(
        alias="-m", help='The box ("pebble"), a folder, a GGUF file, or a pulled name such as google/gemma-2-2b-it.'
    ),
]
AsJson = Annotated[bool, Parameter(name="--json", help="Print one JSON object instead.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlaceFlags:
    """Where a model is computed and how it is held.

    Attributes:
        device: Where to compute; the best this machine has when left out.
        dtype: What to compute in; what the weights are stored in, where the device can, when left out.
        cache: What keys and values are kept in; int8 takes half the memory of bfloat16.
        bits: Round the weights to so many bits while loading; `gemsmith quantize` does it once, with less loss.
        allow_config_key: Pass over an unknown key of the model's configuration; may be repeated.
    """

    device: Literal["cpu", "cuda", "mps"] | None = None
    dtype: Literal["bfloat16", "float32"] | None = None
    cache: Literal["int8", "bfloat16", "float32"] | None = None
    bits: Literal[4, 8] | None = None
    allow_config_key: tuple[str, ...] = ()

    def load(self, model: str) -> "LM":
        """Load a model: the box, a folder, or a pulled name."""
        from gemsmith.weights.ahead import opening

        with opening(model, device=self.device):
            from gemsmith.infer.load import load

            return load(
                model,
                device=self.device,
                dtype=self.dtype,
                allow_config_keys=self.allow_config_key,
                cache_dtype=self.cache,
                bits=self.bits,
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """Where a text comes from, and where it is kept once it was read.

    Attributes:
        file: Read the text from a file.
        prompt_cache: A file that keeps the text as the model has read it. It is made where there is none;
            one that is there saves reading what this text shares with the beginning of its own.
    """

    file: Annotated[Path | None, Parameter(alias="-f")] = None
    prompt_cache: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EndFlags:
    """Where a completion ends, if the model does not end it.

    Attributes:
        max_new_tokens: Longest completion, in tokens.
        stop: A text that ends the completion and is not shown; may be repeated.
    """

    max_new_tokens: Annotated[int, Parameter(alias="-n")] = 512
    stop: tuple[str, ...] = ()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How the next token is chosen; what is left out is the model's own default.

    Attributes:
        temperature: 0 takes the best token, 1 is the model's own spread.
        top_k: Keep the k best tokens.
        top_p: Keep the fewest best tokens whose probabilities sum to it.
        min_p: Keep tokens at least this many times as probable as the best.
        repetition_penalty: Above 1 makes tokens already in the text less likely.
        presence_penalty: Subtracted once from tokens the completion already holds.
        frequency_penalty: Subtracted as often as the completion holds the token.
        seed: Same seed, same text; drawn anew when left out.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None

    def over(self, defaults: "Sampling") -> "Sampling":
        """Return `defaults` with the options that were given."""
        from dataclasses import replace

        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})
