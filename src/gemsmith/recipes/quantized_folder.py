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
from gemsmith.recipes.quantize import CONTEXT, CalibrationPass, TensorLoss, calibration_windows, quantize_network
from gemsmith.recipes.schemes import check_schemes, parse_scheme, uniform, words_of
from gemsmith.recipes.start import find_dense
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.folder import load_network, read_schemes, save_folder
from gemsmith.weights.generation import read_generation_config
from gemsmith.weights.manifest import read_manifest
from gemsmith.weights.save import check_place

_N_TOKENS = 32_768
METHODS = ("rounding", "gptq")  # as the manifest says it


@dataclass(frozen=True)
class Wish:
    """What a quantized model is to be.

    Attributes:
        scheme: Of the linears, in words; int4 by default.
        embedding: Of the embedding, which is the head too, in words; int8 by default.
        size: Bytes its weights may take, in place of both: the schemes follow from it, tensor by tensor.
    """

    scheme: str | None = None
    embedding: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        words = [word for word in (self.scheme, self.embedding) if word is not None]
        if self.size is not None and words:
            raise ConfigError(
                f"scheme and embedding must be left out with a size, which chooses them; got {', '.join(words)!r} and "
                f"{self.size:,} bytes. Leave out one or the other."
            )


@dataclass(frozen=True)
class Text:
    """Texts to calibrate on: a field of a JSON lines file.

    Attributes:
        n_tokens: How many tokens to read at most; by default some thousands, and enough for the widest input.
    """

    path: Path
    field: str = "text"
    n_tokens: int | None = None


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
        ConfigError: There is no such scheme, it does not fit a tensor, the size is too small, the model is in
            few bits already, or `out` holds a model that did not come about here.
        DataError: The calibration text is too short, or missing where a size needs it.
        StorageError: Nothing can be written at `out`.
    """
    linears, table = parse_scheme(wish.scheme or "int4"), parse_scheme(wish.embedding or "int8")
    folder = find_dense(model, name="model")
    _check_out(out.expanduser(), folder)
    if wish.size is not None and calibration is None:
        raise ConfigError(
            f"size must come with calibration text to measure tensors on; got {wish.size:,} bytes and no text. "
            "Give --calibrate a file."
        )
    dtype = choose_dtype(None, stored=stored_dtype(folder), device=torch.device("cpu"))
    loaded = load_network(folder, dtype=dtype)
    network = loaded.network
    tokenizer = Tokenizer.load(folder)
    schemes = {} if wish.size is not None else uniform(network, linears=linears, table=table)
    check_schemes(network, schemes)
    windows = None if calibration is None else _windows(network, tokenizer, calibration)
    if wish.size is not None:
        schemes = spend(network, wish.size, windows or [])
    losses = quantize_network(network, schemes, windows=windows, release=loaded.files.release, tell=tell)
    lineage = {
        **(loaded.report.manifest.lineage if loaded.report.manifest is not None else {}),
        "quantized": {
            "method": METHODS[calibration is not None],
            "schemes": {name: words_of(scheme) for name, scheme in schemes.items()},
            "calibration_tokens": sum(len(window.token_ids) for window in windows or ()),
        },
    }
    suggestions = {key: value for key, value in read_generation_config(folder).items() if key != "eos_ids"}
    stored = loaded.report.dtype if dtype == torch.bfloat16 else stored_dtype(folder)
    save_folder(out, network, tokenizer=tokenizer, dtype=stored, generation=suggestions, lineage=lineage)
    return losses


def _check_out(out: Path, folder: Path) -> None:
    """Refuse a place that cannot be written, or whose model would be lost."""
    if out.resolve() == folder.resolve():
        raise ConfigError(f"out must be another folder than the model's; got {str(out)!r} twice. Choose a new name.")
    check_place(out)
    if out.is_dir() and any(out.iterdir()):
        manifest = read_manifest(out)
        origin = {} if manifest is None else manifest.lineage.get("quantized", {})
        is_ours = isinstance(origin, dict) and origin.get("method") in METHODS and bool(read_schemes(out))
        if not is_ours:
            raise ConfigError(
                f"out must be new, empty or a folder written by quantize; got {str(out)!r}, which holds another model. "
                "Choose a new name, so that it is not lost."
            )


def _windows(network: Transformer, tokenizer: Tokenizer, text: Text) -> list[CalibrationPass]:
    least = max(module.d_in for module in network.modules() if isinstance(module, Linear))
    return calibration_windows(
        read_texts(text.path, text.field),
        tokenizer,
        n_tokens=max(_N_TOKENS, least) if text.n_tokens is None else text.n_tokens,
        least=least,
        context=min(CONTEXT, network.config.max_seq_len),
    )
