"""Recipe files: a TOML file that says what to train on and how."""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.data.sources import Source
from gemsmith.errors import DataError, TrainingError
from gemsmith.train.optimizer import OptimizerSpec

T = TypeVar("T")
Table = Mapping[str, Any]


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
    """A vocabulary to learn from a sample of the sources, or one that is there already.

    Attributes:
        path: A tokenizer file, or a folder with one, below the data folder; it must have `size` pieces.
    """

    size: int
    sample_megabytes: float = 24.0
    path: str | None = None


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
class StartSpec:
    """The model whose weights a run starts from, instead of fresh ones: the box, a folder, or a pulled name."""

    model: str


@dataclass(frozen=True)
class QuantizationSpec:
    """What few bits a network is trained for; names of schemes are those of `gemsmith quantize`.

    Attributes:
        scheme: Of the linears.
        embedding: Of the embedding, which is the head too.
        start: Share of the run after which everything is rounded where it is used.
    """

    scheme: str = "int4"
    embedding: str = "int8"
    start: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise TrainingError(f"start must lie from 0 to below 1; got {self.start!r} in [quantization]. Try 0.8.")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe file; the sections that may be left out are None then."""

    model: Shape
    vocabulary: VocabularySpec
    optimizer: OptimizerSpec
    batch: BatchSpec
    sources: tuple[Source, ...]
    start: StartSpec | None = None
    quantization: QuantizationSpec | None = None


SECTIONS: dict[str, type] = {
    "model": Shape,
    "vocabulary": VocabularySpec,
    "optimizer": OptimizerSpec,
    "batch": BatchSpec,
}
OPTIONAL: dict[str, type] = {"start": StartSpec, "quantization": QuantizationSpec}


def read_recipe(path: Path) -> Recipe:
    """Read a complete recipe file.

    Raises:
        DataError: The file is missing or no TOML, a key is unknown (the nearest is offered) or missing,
            or a value has the wrong type.
    """
    return to_recipe(read_table(path))


def read_table(path: Path) -> Table:
    """Read a recipe file that may lack keys, and check those it has.

    A file that names another as its `base` is that one with the keys of its own sections changed.

    Raises:
        DataError: A file is missing or no TOML, or a key is unknown (the nearest is offered).
    """
    table = read_toml(path)
    if "base" in table:
        base = read_toml(path.parent / str(table.pop("base")))
        if "base" in base:
            raise DataError(f"base of a recipe must have none itself; got one in {str(path)!r}. Name the first one.")
        sources = table.pop("sources", base.pop("sources", []))
        table = {name: {**base.get(name, {}), **table.get(name, {})} for name in {**base, **table}}
        table["sources"] = sources
    check_keys(table, [field.name for field in fields(Recipe)], "the recipe")
    for name, kind in (SECTIONS | OPTIONAL).items():
        check_keys(table.get(name, {}), [field.name for field in fields(kind)], f"[{name}]")
    return table


def read_toml(path: Path) -> dict[str, Any]:
    """Return a recipe file as it stands.

    Raises:
        DataError: The file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"recipe must be a TOML file; got {str(path)!r} ({error}). Check path and syntax.") from error


def to_recipe(table: Table) -> Recipe:
    """Make a recipe of a table that has everything.

    Raises:
        DataError: A key is missing or unknown, or a value has the wrong type.
    """
    names = [field.name for field in fields(Recipe)]
    check_keys(table, names, "the recipe", [name for name in names if name not in OPTIONAL])
    recipe = Recipe(
        read_section(table, "model", Shape),
        read_section(table, "vocabulary", VocabularySpec),
        read_section(table, "optimizer", OptimizerSpec),
        read_section(table, "batch", BatchSpec),
        read_sources(table),
        **{name: read_section(table, name, kind) for name, kind in OPTIONAL.items() if name in table},
    )
    _check_rows(recipe)
    return recipe


def read_section(table: Table, name: str, kind: type[T]) -> T:
    """Return one section of a recipe's table."""
    return _read(kind, table.get(name, {}), f"[{name}]")


def read_sources(table: Table) -> tuple[Source, ...]:
    """Return the sources of a recipe's table.

    Raises:
        DataError: There are none, or one of them is not sound.
    """
    sources = tuple(_read(Source, row, f"source {row.get('name')!r}") for row in table.get("sources", ()))
    if not sources:
        raise DataError("recipe must name at least one source; got none. Add a [[sources]] section.")
    return sources


def check_keys(table: Table, known: list[str], place: str, required: list[str] | None = None) -> None:
    """Refuse keys that are unknown, and the lack of those that are required.

    Raises:
        DataError: One of both; it is named, with the nearest known key.
    """
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.3) or known[:1]
            raise DataError(f"key must be one that recipes know; got {key!r} in {place}. Did you mean {near[0]!r}?")
    missing = [name for name in required or () if name not in table]
    if missing:
        hint = " Add it, or let --params derive it." if missing[0] in SECTIONS or "[" in place else " Add it."
        raise DataError(f"{place} must have the key {missing[0]!r}; got {', '.join(table) or 'none'}.{hint}")


def _check_rows(recipe: Recipe) -> None:
    batch = recipe.batch
    for name in ("row", "late_row"):
        row = getattr(batch, name)
        if row < 2 or batch.tokens % row or row > recipe.model.max_seq_len:
            raise DataError(
                f"{name} must divide the batch's {batch.tokens} tokens and fit max_seq_len; got {row}. "
                "Choose a power of two."
            )


def _read(kind: type[T], table: Table, place: str) -> T:
    """Make a dataclass of a table, strictly."""
    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    required = [name for name, field in known.items() if field.default is MISSING]
    check_keys(table, list(known), place, required)
    values: dict[str, Any] = {}
    for name, value in table.items():
        wanted = str(known[name].type).replace("<class '", "").replace("'>", "")
        if not _fits(value, wanted):
            raise DataError(f"{name} must be of type {wanted}; got {value!r} in {place}. Correct the recipe.")
        values[name] = float(value) if wanted == "float" else tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _fits(value: object, wanted: str) -> bool:
    """Tell whether a TOML value is what a field's type, as written, calls for."""
    if wanted == "bool" or isinstance(value, bool):
        return wanted == "bool" and isinstance(value, bool)
    if wanted == "float":
        return isinstance(value, int | float) and not math.isnan(value)
    if wanted.startswith("tuple"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, int if wanted == "int" else str)
