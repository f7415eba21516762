"""How well does pebble foretell texts it never saw? Beside a 5-gram model of the same texts, and xz.

The 5-gram model counts all texts pebble may be trained on, in pebble's own pieces; xz packs each slice
by itself. No physics: the targets are what was asked for.

    GEMSMITH_DATA=DIR python benchmarks/bench_pebble_quality.py [MODEL] [RECIPE]
"""

import json
import lzma
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import RESULTS, Result, finish

import gemsmith as gs
from gemsmith.data.build import build_dataset
from gemsmith.data.sources import source_documents
from gemsmith.evaluate.bpb import bits_per_byte
from gemsmith.evaluate.ngram import NgramModel
from gemsmith.recipes.recipe import Recipe, read_recipe
from gemsmith.tokenizer import Tokenizer

RECIPE = Path(__file__).parents[1] / "recipes/pebble.toml"
TARGETS = {"tinystories": ("pebble_stories", 1.1), "wiki_lead": ("pebble_leads", 1.9)}
SLICES = (*TARGETS, "fables", "fairytales", "storyweaver", "african_storybook", "books_children")


@dataclass(frozen=True)
class Row:
    """Bits per byte of one slice."""

    name: str
    n_documents: int
    n_bytes: int
    pebble: float
    ngram: float
    xz: float


def main(model: str, recipe_path: Path) -> None:
    data_dir = Path(os.environ["GEMSMITH_DATA"])
    recipe = read_recipe(recipe_path)
    lm = gs.load(model)
    ngram = train_ngram(recipe, lm.tokenizer, data_dir)
    print(f"{'slice':20s} {'documents':>9s} {'bytes':>9s} {'pebble':>8s} {'5-gram':>8s} {'xz -9e':>8s}")
    rows = []
    for name in SLICES:
        row = measure(lm, ngram, name, held_out_texts(recipe, name, data_dir))
        rows.append(asdict(row))
        print(f"{name:20s} {row.n_documents:9d} {row.n_bytes:9d} {row.pebble:8.3f} {row.ngram:8.3f} {row.xz:8.3f}")
        if name in TARGETS:
            measured, target = TARGETS[name]
            note = f"xz -9e {row.xz:.3f}; {row.n_documents} held-out documents, {row.n_bytes} bytes"
            result = Result(
                measured, row.pebble, row.ngram, None, target, row.pebble, "bits per byte", row.pebble <= target, note
            )
            finish(result, config=json.dumps({"model": model, "recipe": recipe_path.name}))
    (RESULTS / "pebble_slices.json").write_text(json.dumps(rows, indent=1) + "\n")


def held_out_texts(recipe: Recipe, name: str, data_dir: Path) -> list[str]:
    """Return the texts of a source that its hash keeps out of training."""
    source = next(source for source in recipe.sources if source.name == name)
    return [document.text for document in source_documents(source, data_dir, is_held_out=True)]


def train_ngram(recipe: Recipe, tokenizer: Tokenizer, data_dir: Path) -> NgramModel:
    """Count every text of the recipe's training side once."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = build_dataset(recipe.sources, tokenizer, data_dir=data_dir, folder=Path(folder) / "shards")

        def documents() -> Iterator[np.ndarray]:
            for shard in dataset.shards.values():
                yield from (shard.token_ids[start:stop] for start, stop in pairwise(shard.offsets.tolist()))

        return NgramModel.train(documents(), vocab_size=tokenizer.vocab_size, bos_id=tokenizer.bos_id)


def measure(lm: gs.LM, ngram: NgramModel, name: str, texts: list[str]) -> Row:
    found = bits_per_byte(lm.network, lm.tokenizer, texts)
    counted = sum(ngram.nll(lm.tokenizer.encode(text)) for text in texts) / np.log(2) / found.n_bytes
    packed = 8 * len(lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)) / found.n_bytes
    return Row(name, found.n_documents, found.n_bytes, found.bpb, counted, packed)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "pebble", Path(sys.argv[2]) if len(sys.argv) > 2 else RECIPE)
