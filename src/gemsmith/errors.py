"""Every error gemsmith raises on purpose.

    GemsmithError
    ├── ConfigError         (ValueError)    a model, window, rope or head layout that cannot be
    ├── TokenizerError      (ValueError)    a vocabulary file, or ids, that do not belong
    ├── ChatError           (ValueError)    a conversation the template cannot express
    ├── PromptError         (ValueError)    a prompt that is empty, too long or not text
    ├── SamplingError       (ValueError)    a temperature, top_k, ... outside its range
    ├── CheckpointError     (ValueError)    a folder or file that is not the model it claims to be
    ├── ModelNotFoundError  (KeyError)      a name that is no folder, preset or pulled model
    ├── HubError            (RuntimeError)  a download that was refused, cut off or is offline
    ├── MemoryLimitError    (RuntimeError)  a model or cache larger than this machine
    ├── CacheError          (RuntimeError)  a key/value cache asked for tokens it no longer holds
    ├── KernelError         (RuntimeError)  compiled kernels that were demanded and cannot be had
    ├── StorageError        (RuntimeError)  a disk that is full or not writable
    ├── DataError           (ValueError)    a document, shard or recipe that cannot be used
    ├── TrainingError       (RuntimeError)  a loss, gradient or resume that must not go on
    └── RunInterrupted      (RuntimeError)  a run that was asked to stop, and saved itself first

Messages read `{name} must {rule}; got {value!r}{where}. {what to do}.`
"""


class GemsmithError(Exception):
    """Stand above every error a caller can cause; the command line prints its message only."""

    def __str__(self) -> str:
        # KeyError would print the repr of its message.
        return str(self.args[0]) if self.args else ""


class ConfigError(GemsmithError, ValueError):
    """A model configuration that cannot be built."""


class TokenizerError(GemsmithError, ValueError):
    """A vocabulary, or token ids, that cannot be used."""


class ChatError(GemsmithError, ValueError):
    """A conversation the model's template cannot express."""


class PromptError(GemsmithError, ValueError):
    """A prompt that is empty, longer than the context, or not text."""


class SamplingError(GemsmithError, ValueError):
    """A sampling setting outside its range."""


class CheckpointError(GemsmithError, ValueError):
    """A checkpoint that is incomplete, corrupted or not what it says it is."""


class ModelNotFoundError(GemsmithError, KeyError):
    """A model name that leads nowhere on this machine."""


class HubError(GemsmithError, RuntimeError):
    """A download that was refused, broke off, or needs a network that is not there."""


class MemoryLimitError(GemsmithError, RuntimeError):
    """A model or cache that does not fit into this machine's memory."""


class CacheError(GemsmithError, RuntimeError):
    """A key/value cache asked for more tokens than it has room for, or no longer holds."""


class KernelError(GemsmithError, RuntimeError):
    """Compiled kernels, or an instruction set, that were demanded and cannot be had."""


class StorageError(GemsmithError, RuntimeError):
    """A disk that is full, missing or not writable; what was there before is still there."""


class DataError(GemsmithError, ValueError):
    """A document, shard or recipe that cannot be used."""


class TrainingError(GemsmithError, RuntimeError):
    """A training run that must not go on."""


class RunInterrupted(GemsmithError, RuntimeError):
    """A run that was asked to stop and is saved; it is no failure, and the same call goes on."""
