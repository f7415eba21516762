"""Other programs that run the same model, to be measured beside us: llama.cpp, transformers, OpenVINO."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gemsmith.errors import CheckpointError, ConfigError, TokenizerError
from gemsmith.evaluate.limits import product_kind
from gemsmith.evaluate.speed import Subject, timed
from gemsmith.infer.lm import LM
from gemsmith.model.quantized import QuantizedLinear
from gemsmith.weights.foreign import is_gguf
from gemsmith.weights.gguf_header import read_gguf
from gemsmith.weights.gguf_write import save_gguf
from gemsmith.weights.opening import open_model

# Rival -> the modules it needs, and how they are installed.
PACKAGES = {
    "llama.cpp": ("llama_cpp", "llama-cpp-python"),
    "transformers": ("transformers", "transformers"),
    "openvino": ("optimum.intel", "'optimum-intel[openvino]'"),
}


@dataclass(frozen=True)
class Rival:
    """Another program that has loaded a model.

    Attributes:
        n_bytes: Of the weights it reads; None where it does not tell.
    """

    turn: Subject
    n_bytes: int | None


@contextmanager
def rival(name: str, lm: LM, place: Path, *, model: Path | None, max_tokens: int) -> Iterator[Rival]:
    """Give another program that has loaded the same model, with torch's number of threads.

    Args:
        name: One of PACKAGES.
        lm: The model as we have loaded it.
        place: Where it lies.
        model: The file or folder the other program is to load; by default `place`, or for llama.cpp a
            GGUF file written from it in as many bits into a folder that goes away.
        max_tokens: Longest prompt and what is written after it.

    Raises:
        ConfigError: The program is not installed, or cannot load what lies there.
    """
    module = _import(name)
    if name == "llama.cpp":
        with TemporaryDirectory() as folder:
            path = model or _gguf(lm, place, Path(folder))
            with _loading(name, path):
                found = _llama(module, path, max_tokens)
            yield found
        return
    path = place if model is None else model
    if not path.is_dir():
        raise ConfigError(
            f"model of {name} must be a folder; got {str(path)!r}. Give one with --against-model, or take llama.cpp."
        )
    with _loading(name, path):
        found = _transformers(module, path, lm.dtype) if name == "transformers" else _openvino(module, path)
    yield found


@contextmanager
def _loading(name: str, path: Path) -> Iterator[None]:
    """Name program and path in whatever another program raises."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"model must be one that {name} can load; got {str(path)!r} ({type(error).__name__}: {error}). "
            "Give another with --against-model, or leave the program out."
        ) from error


def _import(name: str) -> Any:
    module, package = PACKAGES[name]
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"against must be a program that is installed; got {name!r} ({error}). Install it: pip install {package}"
        ) from error


def _gguf(lm: LM, place: Path, folder: Path) -> Path:
    """Return the model as a GGUF file: as it is, or written in as many bits as we compute with."""
    if is_gguf(place):
        return place
    loaded, tokenizer = open_model(place, keep_bits=True)
    if tokenizer is None:
        raise TokenizerError(f"model must have a tokenizer to be written as GGUF; got none in {str(place)!r}. Add it.")
    kind = "f16"
    if product_kind(lm.network) == "int8":
        bits = [m.quantized.scheme.bits for m in lm.network.modules() if isinstance(m, QuantizedLinear)]
        kind = "q8_0" if 2 * sum(b == 8 for b in bits) > len(bits) else "q4_0"
    return save_gguf(folder / "model.gguf", loaded.network, tokenizer=tokenizer, kind=kind, name=place.stem).path


def _llama(module: Any, path: Path, max_tokens: int) -> Rival:
    n = torch.get_num_threads()
    llama = module.Llama(
        model_path=str(path), n_ctx=max_tokens, n_batch=512, n_threads=n, n_threads_batch=n, verbose=False
    )

    def read(prompt: Sequence[int]) -> int:
        llama.reset()
        llama.eval(list(prompt))
        return int(llama.sample(temp=0.0))

    def write(token: int) -> int:
        llama.eval([token])
        return int(llama.sample(temp=0.0))

    return Rival(timed(read, write), _gguf_bytes(path))


def _gguf_bytes(path: Path) -> int | None:
    """Return the bytes of a file's tensors; None for a file that only the other program reads."""
    try:
        return sum(tensor.n_bytes for tensor in read_gguf(path).tensors.values())
    except CheckpointError:
        return None


def _transformers(module: Any, path: Path, dtype: torch.dtype) -> Rival:
    model = module.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval()
    turn = _stepped(lambda ids, mask, past: model(
        input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1
    ))  # fmt: skip
    return Rival(turn, sum(x.numel() * x.element_size() for x in model.parameters()))


def _openvino(module: Any, path: Path) -> Rival:
    is_ready = any(path.glob("*.xml"))
    options = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "PERFORMANCE_HINT": "LATENCY"}
    model = module.OVModelForCausalLM.from_pretrained(path, export=not is_ready, ov_config=options)
    turn = _stepped(lambda ids, mask, past: model(input_ids=ids, attention_mask=mask, past_key_values=past))
    return Rival(turn, sum(file.stat().st_size for file in path.glob("*.bin")) if is_ready else None)


def _stepped(forward: Callable[[torch.Tensor, torch.Tensor, Any], Any]) -> Subject:
    """Return the turn of a module that hands its cache back and forth."""
    past: Any = None
    n_seen = 0

    @torch.inference_mode()
    def step(token_ids: Sequence[int]) -> int:
        nonlocal past, n_seen
        n_seen += len(token_ids)
        out = forward(torch.tensor([list(token_ids)]), torch.ones(1, n_seen, dtype=torch.long), past)
        past = out.past_key_values
        return int(torch.as_tensor(out.logits)[0, -1].argmax())

    def read(prompt: Sequence[int]) -> int:
        nonlocal past, n_seen
        past, n_seen = None, 0
        return step(prompt)

    return timed(read, lambda token: step([token]))
