"""The metadata of a GGUF file, asked key by key, each answer of the type that was asked for."""

from collections.abc import Sequence

import numpy as np

from gemsmith.errors import CheckpointError, ConfigError
from gemsmith.weights.gguf_header import GgufFile, Value

ARCHITECTURES = ("gemma", "gemma2", "gemma3")
ARCHITECTURE = "general.architecture"
_MAX_COUNT = 1 << 31


class Metadata:
    """What a file says about its model; keys without a dot in front belong to its architecture."""

    def __init__(self, file: GgufFile) -> None:
        self.values, self.path = file.metadata, file.path
        self.architecture = self.text(ARCHITECTURE)
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"{ARCHITECTURE} must be one of {', '.join(ARCHITECTURES)}; got {self.architecture!r} in "
                f"{str(self.path)!r}. Other kinds of model are not read by this version."
            )
        n_parts = self.count("split.count", default=1)
        if n_parts > 1:
            raise CheckpointError(
                f"a GGUF model must be one file; got the first or another of {n_parts} parts in {str(self.path)!r}. "
                "Join them with llama-gguf-split --merge."
            )

    def full(self, key: str) -> str:
        """Return the whole name of a key of the architecture."""
        is_whole = key.startswith(("general.", "tokenizer.", "split."))
        return key if is_whole else f"{self.architecture}.{key}"

    def get(self, key: str) -> Value | None:
        """Return the value of a key, None where the file has none."""
        return self.values.get(self.full(key) if key != ARCHITECTURE else key)

    def count(self, key: str, *, default: int | None = None, limit: int = _MAX_COUNT) -> int:
        """Return a whole number from 0 up to `limit`."""
        value = self._or_default(key, default)
        if type(value) is not int or not 0 <= value <= limit:
            raise self.wrong(key, f"be a whole number up to {limit}", value)
        return value

    def counts(self, key: str, n: int, *, default: int | None = None) -> list[int]:
        """Return a whole number for each of `n` layers: the file gives one for all, or a list."""
        value = self.get(key)
        if not isinstance(value, np.ndarray):
            return [self.count(key, default=default)] * n
        is_list = value.dtype.kind in "iu" and len(value) == n
        if not is_list or any(not 0 <= count <= _MAX_COUNT for count in value.tolist()):
            raise self.wrong(key, f"be a whole number or {n} of them, up to {_MAX_COUNT}", value.tolist()[:8])
        return value.tolist()

    def number(self, key: str, *, default: float | None = None) -> float:
        """Return a number."""
        value = self._or_default(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "be a number", value)
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return True or False."""
        value = self._or_default(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "be true or false", value)
        return value

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "be a text", value)
        return value

    def texts(self, key: str) -> list[bytes]:
        """Return a list of texts in bytes."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "be a list of texts", value)
        return value

    def numbers(self, key: str, kinds: str) -> np.ndarray:
        """Return an array whose numbers are of one of numpy's kinds ("i", "u", "f", "b")."""
        value = self.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            raise self.wrong(key, "be a list of numbers", value)
        return value

    def wrong(self, key: str, rule: str, value: object) -> ConfigError:
        """Return the error for a value that breaks a rule."""
        found = "no such key" if value is None else f"{value!r:.80}"
        return ConfigError(
            f"{self.full(key)} must {rule}; got {found} in {str(self.path)!r}. "
            "Convert the model again, or take another file of it."
        )

    def _or_default(self, key: str, default: Value | None) -> Value | None:
        value = self.get(key)
        return default if value is None else value


def unknown_keys(metadata: Metadata, known: Sequence[str], allowed: Sequence[str] | set[str] | frozenset[str]) -> None:
    """Refuse a key of the architecture that nobody reads: it could change the numbers.

    Raises:
        ConfigError: The first such key is named.
    """
    read = {metadata.full(key) for key in known}
    for key, value in metadata.values.items():
        if key.startswith(f"{metadata.architecture}.") and key not in read and key not in allowed:
            raise ConfigError(
                f"metadata must hold known keys only; got {key!r} = {value!r:.80} in {str(metadata.path)!r}, which "
                f"could change the numbers. If you know it does not, pass --allow-config-key {key} "
                f"(allow_config_keys=[{key!r}])."
            )
