"""Batches made ahead are those of the mixture, whatever the number of workers."""

import threading
from pathlib import Path

import pytest
import torch

from corpora import write_corpora
from gemsmith.data.build import build_dataset
from gemsmith.data.loader import Loader
from gemsmith.data.mixture import Batch, Mixture
from gemsmith.errors import DataError
from vocab import small_tokenizer

FIELDS = ("token_ids", "targets", "loss_mask", "documents", "positions")


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    sources = write_corpora(tmp_path)
    dataset = build_dataset(sources, small_tokenizer(), data_dir=tmp_path, folder=tmp_path / "built")
    return dataset.mixture(sources, seed=11)


def same(one: Batch, other: Batch) -> bool:
    return one.sources == other.sources and all(torch.equal(getattr(one, f), getattr(other, f)) for f in FIELDS)


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(mixture: Mixture, n_workers: int) -> None:
    main, late = mixture.stage(row=256), mixture.stage(row=512, is_late=True)
    # Steps in order, a jump back as after a resume, another stage, and micro-batches of another size.
    wanted = [*((main, first, 4) for first in range(0, 40, 4)), (main, 8, 4), (main, 12, 4), (late, 0, 2), (late, 2, 3)]
    with Loader(mixture, n_workers=n_workers, n_ahead=3) as loader:
        found = [loader.batch(*key) for key in wanted]
    assert all(same(batch, mixture.batch(*key)) for batch, key in zip(found, wanted, strict=True))


def test_next_batches_are_made_before_they_are_asked_for(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    made, enough, batch = [], threading.Event(), mixture.batch

    def watched(stage: object, first: int, n_rows: int) -> Batch:
        made.append((first, threading.current_thread().name))
        if len(made) == 3:
            enough.set()
        return batch(stage, first, n_rows)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(mixture, "batch", watched)
    with Loader(mixture, n_workers=1, n_ahead=2) as loader:
        loader.batch(loader.stage(row=256), 0, 2)
        assert enough.wait(20)
    assert [first for first, _ in made] == [0, 2, 4]
    assert all(name.startswith("gemsmith-batch") for _, name in made)


def test_mistake_of_a_later_batch_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    sources = [s for s in write_corpora(tmp_path) if s.name == "guide"]
    dataset = build_dataset(sources, small_tokenizer(), data_dir=tmp_path, folder=tmp_path / "built")
    mixture = dataset.mixture(sources, seed=1)
    stage = mixture.stage(row=2048)  # one row an epoch, ten epochs
    with Loader(mixture, n_workers=2) as loader:
        for number in range(10):
            loader.batch(stage, number, 1)
        with pytest.raises(DataError, match="'guide' must not be seen more than 10 times; got row 10"):
            loader.batch(stage, 10, 1)
