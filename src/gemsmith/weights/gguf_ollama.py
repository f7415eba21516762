"""Gemma 3 files of Ollama's own converter, said in the words llama.cpp has for the same things.

That converter calls the rotary bases by other names, leaves out what its program takes for granted (the
epsilon of norms, bases, how positions of long-context members are divided), and gave the 1B member a cap of
logits it does not have. A file of it is known by keys no other program writes.

Source: ollama/ollama, convert/convert_gemma3.go, model/models/gemma3/model_text.go (`newTextModel`) and
llama-ollama-compat.cpp (`handle_gemma3`).
"""

from dataclasses import replace

from gemsmith.weights.gguf_header import GgufFile, Value

_FAMILY = "gemma3"
_NAMES = {"rope.global.freq_base": "rope.freq_base", "rope.local.freq_base": "rope.freq_base_swa"}
_MARKS = (*(f"{_FAMILY}.{name}" for name in _NAMES), f"{_FAMILY}.mm.tokens_per_image", f"{_FAMILY}.vision.block_count")
_TOKENIZER_MARKS = ("tokenizer.ggml.add_padding_token", "tokenizer.ggml.add_unknown_token")
_TAKEN_FOR_GRANTED: dict[str, Value] = {
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 1_000_000.0,
    "rope.freq_base_swa": 10_000.0,
}
# Members with a context this long divide positions of their global layers by 8.
_LONG_CONTEXT = 131_072
_LONG_SCALING: dict[str, Value] = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
_N_LAYERS_1B = 26


def in_common_words(file: GgufFile) -> GgufFile:
    """Return a file whose metadata stands as llama.cpp would write it; any other file as it is."""
    if file.metadata.get("general.architecture") != _FAMILY or not _is_of_ollama(file):
        return file
    words = {_short(key): value for key, value in file.metadata.items() if _is_own(key)}
    for theirs, common in _NAMES.items():
        if theirs in words:
            words.setdefault(common, words.pop(theirs))
    for short, value in _TAKEN_FOR_GRANTED.items():
        words.setdefault(short, value)
    context = words.get("context_length")
    if isinstance(context, int) and context >= _LONG_CONTEXT and "rope.scaling.factor" not in words:
        words |= _LONG_SCALING
    if words.get("block_count") == _N_LAYERS_1B:
        words.pop("final_logit_softcapping", None)
    others = {key: value for key, value in file.metadata.items() if not _is_own(key)}
    return replace(file, metadata=others | {f"{_FAMILY}.{short}": value for short, value in words.items()})


def _is_of_ollama(file: GgufFile) -> bool:
    return any(key in file.metadata for key in (*_MARKS, *_TOKENIZER_MARKS))


def _is_own(key: str) -> bool:
    return key.startswith(f"{_FAMILY}.")


def _short(key: str) -> str:
    return key.removeprefix(f"{_FAMILY}.")
