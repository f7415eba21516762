"""A folder made ready to train from: vocabulary and shards, learned and built once."""

from collections.abc import Sequence
from pathlib import Path

from gemsmith.data.build import build_dataset
from gemsmith.data.dataset import Dataset, open_dataset
from gemsmith.data.index import INDEX_FILE
from gemsmith.data.sources import Source
from gemsmith.data.vocabulary import Learning, given_vocabulary, learned_vocabulary

VOCABULARY, SHARDS = "vocabulary", "shards"


def prepare(
    sources: Sequence[Source],
    vocabulary: Learning | Path,
    *,
    data_dir: Path,
    out: Path,
    n_workers: int = 1,
) -> Dataset:
    """Return the dataset in `out`/shards, made from `data_dir` where it is not there yet.

    Args:
        vocabulary: How to learn one into `out`/vocabulary, or where one is.
        data_dir: Folder the sources' paths start from, or one that was prepared already.
        n_workers: Processes that tokenize.
    """
    if is_prepared(data_dir):
        return open_dataset(data_dir / SHARDS)
    if isinstance(vocabulary, Path):
        tokenizer = given_vocabulary(vocabulary)
    else:
        tokenizer = learned_vocabulary(sources, data_dir, folder=out / VOCABULARY, learning=vocabulary)
    return build_dataset(sources, tokenizer, data_dir=data_dir, folder=out / SHARDS, n_workers=n_workers)


def is_prepared(folder: Path) -> bool:
    """Tell whether a folder holds a dataset instead of texts."""
    return (folder / SHARDS / INDEX_FILE).is_file()
