"""Recipe files: a TOML file that says what to train on and how."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.sources import Source
from gemsmith.errors import DataError
from gemsmith.train.optimizer import OptimizerSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """The network: Gemma 2's blocks at a size of one's own, every other layer local."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    window: int
    max_seq_len: int

    def config(self, vocab_size: int) -> ModelConfig:
        """Return the configuration, with Gemma 2's soft caps and special ids.

        Source: Gemma 2 report, arXiv:2408.00118, section 2.
        """
        local = LayerSpec(
            "local", self.n_heads, self.n_kv_heads, self.head_dim, self.d_ff,
            attn_scale=self.head_dim**-0.5, window=self.window, attn_softcap=50.0,
        )  # fmt: skip
        both = (local, replace(local, kind="global", window=None))
        layers = tuple(both[index % 2] for index in range(self.n_layers))
        return ModelConfig(
            "gemma2", vocab_size, self.d_model, self.max_seq_len, layers, final_softcap=30.0, eos_ids=(1, 107)
        )


@dataclass(frozen=True)
class VocabularySpec:
    """A vocabulary to learn from a sample of the sources."""

    size: int
    sample_megabytes: float


@dataclass(frozen=True)
class BatchSpec:
    """What a step sees.

    Attributes:
        tokens: Tokens of a step.
        row: Tokens of a row, which no document outgrows, in the main part of a run.
        late_row: The same in the last part, the `late_share` of the run.
    """

    tokens: int
    row: int
    late_row: int
    late_share: float
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """A whole recipe file."""

    model: Shape
    vocabulary: VocabularySpec
    optimizer: OptimizerSpec
    batch: BatchSpec
    sources: tuple[Source, ...]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        DataError: The file is missing or no TOML, a key is unknown (the nearest is offered) or missing,
            or a value has the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"recipe must be a TOML file; got {str(path)!r} ({error}). Check path and syntax.") from error
    _check_keys(table, [field.name for field in fields(Recipe)], "the recipe")
    sources = tuple(_read(Source, row, f"source {row.get('name')!r}") for row in table["sources"])
    batch = _read(BatchSpec, table["batch"], "[batch]")
    model = _read(Shape, table["model"], "[model]")
    vocabulary = _read(VocabularySpec, table["vocabulary"], "[vocabulary]")
    optimizer = _read(OptimizerSpec, table["optimizer"], "[optimizer]")
    for name in ("row", "late_row"):
        row = getattr(batch, name)
        if row < 2 or batch.tokens % row or row > model.max_seq_len:
            raise DataError(
                f"{name} must divide the batch's {batch.tokens} tokens and fit max_seq_len; got {row}. "
                "Choose a power of two."
            )
    return Recipe(model, vocabulary, optimizer, batch, sources)


def _read(kind: type[T], table: Mapping[str, Any], place: str) -> T:
    """Make a dataclass of a table, strictly."""
    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    required = [name for name, field in known.items() if repr(field.default).startswith("<dataclasses")]
    _check_keys(table, list(known), place, required)
    values: dict[str, Any] = {}
    for name, value in table.items():
        wanted = str(known[name].type).replace("<class '", "").replace("'>", "")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        fits = {"int": isinstance(value, int), "float": is_number}.get(wanted, isinstance(value, str))
        if not fits:
            raise DataError(f"{name} must be of type {wanted}; got {value!r} in {place}. Correct the recipe.")
        values[name] = float(value) if wanted == "float" else value
    return kind(**values)


def _check_keys(table: Mapping[str, Any], known: list[str], place: str, required: list[str] | None = None) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3) or known[:1]
            raise DataError(f"key must be one that recipes know; got {key!r} in {place}. Did you mean {near[0]!r}?")
    missing = [name for name in (known if required is None else required) if name not in table]
    if missing:
        raise DataError(f"{place} must have the key {missing[0]!r}; got {', '.join(table) or 'none'}. Add it.")
