"""Run, make and measure Gemma-family language models; every public name is here.

    import gemsmith as gs

    lm = gs.load("pebble")
    print(lm.generate("Once upon a time", max_new_tokens=64).text)

A name is imported when it is first used, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemsmith.chat import Turn
    from gemsmith.config import ModelConfig, preset
    from gemsmith.errors import (
        CacheError,
        ChatError,
        CheckpointError,
        ConfigError,
        DataError,
        GemsmithError,
        HubError,
        MemoryLimitError,
        ModelNotFoundError,
        PromptError,
        SamplingError,
        StorageError,
        TokenizerError,
        TrainingError,
    )
    from gemsmith.infer.lm import LM, Completion
    from gemsmith.infer.load import load
    from gemsmith.infer.sample import Sampling
    from gemsmith.tokenizer import Tokenizer

    __version__: str

# Public name -> the module that defines it.
_HOMES = {
    "load": "gemsmith.infer.load",
    "LM": "gemsmith.infer.lm",
    "Completion": "gemsmith.infer.lm",
    "Sampling": "gemsmith.infer.sample",
    "Turn": "gemsmith.chat",
    "Tokenizer": "gemsmith.tokenizer",
    "ModelConfig": "gemsmith.config",
    "preset": "gemsmith.config",
    "CacheError": "gemsmith.errors",
    "ChatError": "gemsmith.errors",
    "CheckpointError": "gemsmith.errors",
    "ConfigError": "gemsmith.errors",
    "DataError": "gemsmith.errors",
    "GemsmithError": "gemsmith.errors",
    "HubError": "gemsmith.errors",
    "MemoryLimitError": "gemsmith.errors",
    "ModelNotFoundError": "gemsmith.errors",
    "PromptError": "gemsmith.errors",
    "SamplingError": "gemsmith.errors",
    "StorageError": "gemsmith.errors",
    "TokenizerError": "gemsmith.errors",
    "TrainingError": "gemsmith.errors",
}

__all__ = [
    "LM",
    "CacheError",
    "ChatError",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "DataError",
    "GemsmithError",
    "HubError",
    "MemoryLimitError",
    "ModelConfig",
    "ModelNotFoundError",
    "PromptError",
    "Sampling",
    "SamplingError",
    "StorageError",
    "Tokenizer",
    "TokenizerError",
    "TrainingError",
    "Turn",
    "__version__",
    "load",
    "preset",
]


def __getattr__(name: str) -> object:
    """Return a public name, imported now and kept for the next time."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("gemsmith")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'gemsmith' has no attribute {name!r}. It has {', '.join(__all__)}.")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, those not yet imported included."""
    return sorted({*globals(), *__all__})
