"""Other programs that run the same model, to be measured beside us: llama.cpp, transformers, OpenVINO."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gemsmith.errors import ConfigError, TokenizerError
from gemsmith.evaluate.limits import product_kind
from gemsmith.evaluate.speed import Subject, timed
from gemsmith.infer.lm import LM
from gemsmith.model.quantized import QuantizedLinear
from gemsmith.weights.foreign import is_gguf
from gemsmith.weights.gguf_write import save_gguf
from gemsmith.weights.opening import open_model

# Rival -> the modules it needs, and how they are installed.
PACKAGES = {
    "llama.cpp": ("llama_cpp", "llama-cpp-python"),
    "transformers": ("transformers", "transformers"),
    "openvino": ("optimum.intel", "'optimum-intel[openvino]'"),
}


@contextmanager
def rival(name: str, lm: LM, place: Path, *, model: Path | None, max_tokens: int) -> Iterator[Subject]:
    """Give the turn of another program that has loaded the same model, with torch's number of threads.

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
            yield _llama(module, path, max_tokens)
        return
    path = place if model is None else model
    if not path.is_dir():
        raise ConfigError(
            f"model of {name} must be a folder; got {str(path)!r}. Give one with --against-model, or take llama.cpp."
        )
    yield _transformers(module, path, lm.dtype) if name == "transformers" else _openvino(module, path)


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
    loaded, tokenizer = open_model(place)
    if tokenizer is None:
        raise TokenizerError(f"model must have a tokenizer to be written as GGUF; got none in {str(place)!r}. Add it.")
    kind = "f16"
    if product_kind(lm.network) == "int8":
        bits = [m.quantized.scheme.bits for m in lm.network.modules() if isinstance(m, QuantizedLinear)]
        kind = "q8_0" if 2 * sum(b == 8 for b in bits) > len(bits) else "q4_0"
    return save_gguf(folder / "model.gguf", loaded.network, tokenizer=tokenizer, kind=kind, name=place.stem).path


def _llama(module: Any, path: Path, max_tokens: int) -> Subject:
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

    return timed(read, write)


def _transformers(module: Any, path: Path, dtype: torch.dtype) -> Subject:
    model = module.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval()
    return _stepped(lambda ids, mask, past: model(
        input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1
    ))  # fmt: skip


def _openvino(module: Any, path: Path) -> Subject:
    is_ready = any(path.glob("*.xml"))
    options = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "PERFORMANCE_HINT": "LATENCY"}
    model = module.OVModelForCausalLM.from_pretrained(path, export=not is_ready, ov_config=options)
    return _stepped(lambda ids, mask, past: model(input_ids=ids, attention_mask=mask, past_key_values=past))


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
