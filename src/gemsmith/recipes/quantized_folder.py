"""A model folder in full precision -> a folder of the same model in few bits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gemsmith.data.readers import read_texts
from gemsmith.errors import ConfigError
from gemsmith.infer.device import choose_dtype
from gemsmith.infer.load import stored_dtype
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.budget import spend
from gemsmith.recipes.quantize import CONTEXT, TensorLoss, Window, calibration_windows, quantize_network
from gemsmith.recipes.schemes import check_schemes, parse_scheme, uniform, words_of
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import load_network, read_schemes, save_folder
from gemsmith.weights.generation import read_generation_config

_N_TOKENS = 32_768


@dataclass(frozen=True)
class Wish:
    """What a quantized model is to be.

    Attributes:
        scheme: Of the linears, in words.
        embedding: Of the embedding, which is the head too, in words.
        size: Bytes its weights may take; the schemes then follow from the budget, tensor by tensor.
    """

    scheme: str = "int4"
    embedding: str = "int8"
    size: int | None = None


@dataclass(frozen=True)
class Text:
    """Texts to calibrate on: a field of a JSON lines file, and how many of its tokens at most."""

    path: Path
    field: str = "text"
    n_tokens: int = _N_TOKENS


def quantize_folder(
    model: str,
    out: Path,
    wish: Wish,
    *,
    calibration: Text | None = None,
    tell: Callable[[TensorLoss], None] = lambda _: None,
) -> list[TensorLoss]:
    """Write a model in few bits, and return what each tensor has lost.

    With calibration text, linears are rounded by GPTQ; without, to the nearest value. The original is
    read layer by layer from its mapped file.

    Raises:
        ConfigError: There is no such scheme, it does not fit a tensor, the size is too small, or the
            model is in few bits already.
        DataError: The calibration text is too short, or missing where a size needs it.
    """
    linears, table = parse_scheme(wish.scheme), parse_scheme(wish.embedding)
    folder = find_model(model)
    _check_dense(model, folder, out)
    if wish.size is not None and calibration is None:
        raise ConfigError(
            f"size must come with calibration text to measure tensors on; got {wish.size:,} bytes and no text. "
            "Give --calibrate a file."
        )
    dtype = choose_dtype(None, stored=stored_dtype(folder), device=torch.device("cpu"))
    loaded = load_network(folder, dtype=dtype)
    network = loaded.network
    tokenizer = Tokenizer.load(folder)
    schemes = uniform(network, linears=linears, table=table)
    check_schemes(network, schemes)
    windows = None if calibration is None else _windows(network, tokenizer, calibration)
    if wish.size is not None:
        schemes = spend(network, wish.size, windows or [])
    losses = quantize_network(network, schemes, windows=windows, release=loaded.files.release, tell=tell)
    lineage = {
        **(loaded.report.manifest.lineage if loaded.report.manifest is not None else {}),
        "quantized": {
            "method": "rounding" if calibration is None else "gptq",
            "schemes": {name: words_of(scheme) for name, scheme in schemes.items()},
            "calibration_tokens": sum(len(window.token_ids) for window in windows or ()),
        },
    }
    suggestions = {key: value for key, value in read_generation_config(folder).items() if key != "eos_ids"}
    stored = loaded.report.dtype if dtype == torch.bfloat16 else stored_dtype(folder)
    save_folder(out, network, tokenizer=tokenizer, dtype=stored, generation=suggestions, lineage=lineage)
    return losses


def _check_dense(model: str, folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"model must be a folder to be quantized; got {model!r}. Convert it to a folder first.")
    if read_schemes(folder):
        raise ConfigError(
            f"model must be in full precision to be quantized; got {model!r}, which is in few bits already. "
            "Start from the original."
        )
    if out.resolve() == folder.resolve():
        raise ConfigError(f"out must be another folder than the model's; got {str(out)!r} twice. Choose a new name.")


def _windows(network: Transformer, tokenizer: Tokenizer, text: Text) -> list[Window]:
    least = max(module.d_in for module in network.modules() if isinstance(module, Linear))
    return calibration_windows(
        read_texts(text.path, text.field),
        tokenizer,
        n_tokens=max(text.n_tokens, least),
        least=least,
        context=min(CONTEXT, network.config.max_seq_len),
    )
