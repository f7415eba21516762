"""The two sides of a comparison, behind one face: ours from a folder, or another library's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.errors import ConfigError, ModelNotFoundError, TokenizerError
from gemsmith.tokenizer import JSON_FILE, MODEL_FILE
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import read_config
from gemsmith.weights.opening import open_model

TRANSFORMERS = "transformers:"
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Trace:
    """What a network computed for one sequence.

    Attributes:
        places: State of every token after the embedding and after each layer, in order.
    """

    places: dict[str, Float[Tensor, "T D"]]
    logits: Float[Tensor, "T V"]


@dataclass(frozen=True)
class Subject:
    """A model to be compared.

    Attributes:
        encode: Text to ids, control pieces included; None for a folder without a vocabulary.
        trace: Ids to states and logits.
    """

    name: str
    config: ModelConfig
    encode: Encode | None
    trace: Callable[[Sequence[int]], Trace]


def open_subject(name: str, dtype: torch.dtype) -> Subject:
    """Load one side of a comparison.

    Args:
        name: A folder, a GGUF file, a pulled name, "pebble", or "transformers:" and a folder for that library's
            own reading of it.
    """
    if not name.startswith(TRANSFORMERS):
        return _own(name, dtype)
    folder = Path(name.removeprefix(TRANSFORMERS)).expanduser()
    if not folder.is_dir():
        raise ModelNotFoundError(f"{TRANSFORMERS} must be followed by a folder; got {str(folder)!r}. Give a path.")
    return _foreign(name, folder, dtype)


def _own(name: str, dtype: torch.dtype) -> Subject:
    loaded, tokenizer = open_model(find_model(name), dtype=dtype)
    network = loaded.network
    places = ["embedding", *(f"layers.{index}" for index in range(loaded.config.n_layers))]

    def trace(token_ids: Sequence[int]) -> Trace:
        logits, captured = network(torch.tensor([list(token_ids)]), capture=places)
        return Trace({place: captured[place][0].float() for place in places}, logits[0])

    encode = None if tokenizer is None else lambda text: tokenizer.encode(text, control=True)
    return Subject(name, loaded.config, encode, trace)


def _foreign(name: str, folder: Path, dtype: torch.dtype) -> Subject:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"transformers must be installed to read {name!r}; got {error}. Run: pip install 'gemsmith[interop]'"
        ) from error
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True, use_safetensors=True
    ).eval()
    layers = model.get_decoder().layers

    def trace(token_ids: Sequence[int]) -> Trace:
        places: dict[str, Tensor] = {}
        hooks = [layers[0].register_forward_pre_hook(_keep_input(places), with_kwargs=True)]
        hooks += [layer.register_forward_hook(_keep_output(places, index)) for index, layer in enumerate(layers)]
        try:
            logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
        return Trace(places, logits[0].float())

    return Subject(name, read_config(folder), _foreign_encode(folder), trace)


def _foreign_encode(folder: Path) -> Encode | None:
    if not _has_tokenizer(folder):
        return None
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"tokenizer must be one transformers reads; got {str(folder)!r} ({error}).") from error
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _has_tokenizer(folder: Path) -> bool:
    return (folder / MODEL_FILE).exists() or (folder / JSON_FILE).exists()


def _keep_input(places: dict[str, Tensor]) -> Callable[..., None]:
    def hook(_module: object, inputs: tuple[Tensor, ...], words: dict[str, Tensor]) -> None:
        places["embedding"] = (inputs[0] if inputs else words["hidden_states"])[0].float()

    return hook


def _keep_output(places: dict[str, Tensor], index: int) -> Callable[..., None]:
    def hook(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        places[f"layers.{index}"] = (output if isinstance(output, Tensor) else output[0])[0].float()

    return hook
