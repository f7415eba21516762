"""`gemsmith data`: text to shards, and whether shards are what was built."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from gemsmith.cli.console import say, table, write, write_json
from gemsmith.cli.flags import AsJson

if TYPE_CHECKING:
    from gemsmith.data.dataset import Dataset

app = App(name="data", help="Build and check datasets.")


@app.command
def build(
    recipe: Path,
    /,
    *,
    data: Path,
    out: Path,
    workers: int = 1,
    vocabulary: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Turn the texts of a recipe into shards of token ids; pretrain takes the folder as its --data.

    Args:
        recipe: A TOML file, such as recipes/pebble.toml.
        data: The folder the recipe's paths start from.
        out: Where vocabulary and shards go; what was built there from the same inputs is used again.
        workers: Processes that tokenize; the shards do not depend on their number.
        vocabulary: A tokenizer file or folder to use, instead of what the recipe says.
    """
    from gemsmith.data.prepared import prepare
    from gemsmith.data.vocabulary import Learning, given_vocabulary
    from gemsmith.recipes.recipe import VocabularySpec, read_section, read_sources, read_table

    rows = read_table(recipe)
    sources, spec = read_sources(rows), None if vocabulary else read_section(rows, "vocabulary", VocabularySpec)
    given = vocabulary
    if spec is not None and spec.path is not None:
        given = data / spec.path
        given_vocabulary(given, size=spec.size)
    chosen = given or Learning(spec.size, spec.sample_megabytes)  # pyright: ignore[reportOptionalMemberAccess]
    _show(prepare(sources, chosen, data_dir=data, out=out, n_workers=workers), out, as_json=as_json)
    return 0


@app.command
def verify(folder: Path, /, *, as_json: AsJson = False) -> int:
    """Compare every file of a dataset with its hash, computed anew.

    Args:
        folder: What data build wrote, or the shards below it.
    """
    from gemsmith.data.dataset import open_dataset
    from gemsmith.data.prepared import SHARDS, is_prepared

    _show(open_dataset(folder / SHARDS if is_prepared(folder) else folder, is_fresh=True), folder, as_json=as_json)
    return 0


def _show(dataset: "Dataset", folder: Path, *, as_json: bool) -> None:
    """Write the folder, or everything about it; a table for the person goes to stderr."""
    index = dataset.index
    counts = {name: asdict(source.counts) for name, source in index.sources.items()}
    if as_json:
        facts = {"fingerprint": dataset.fingerprint, "n_pieces": index.n_pieces, "totals": asdict(index.totals)}
        write_json({"folder": str(folder), **facts, "sources": counts})
        return
    columns = {
        "documents": "n_documents", "tokens": "n_tokens", "held out": "n_held_out", "repeated": "n_duplicates",
        "leaked": "n_leaked",
    }  # fmt: skip
    rows = [("source", *columns), *_rows(counts | {"all": asdict(index.totals)}, list(columns.values()))]
    say(table(rows))
    kept = [name for name, source in index.sources.items() if not source.facts["ships"]]
    if kept:
        say(f"gemsmith: weights trained on {', '.join(kept)} must not be shipped (ships = false).")
    write(str(folder))


def _rows(counts: dict[str, dict[str, int]], keys: list[str]) -> list[tuple[str, ...]]:
    return [(name, *(f"{row[key]:,}" for key in keys)) for name, row in counts.items()]
