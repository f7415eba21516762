"""Text to shards: what is counted, dropped, held out and written, whatever the number of workers."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpora import sentences, write_corpora, write_lines
from gemsmith.data.build import BuildSpec, build_dataset
from gemsmith.data.dataset import Dataset
from gemsmith.data.documents import held_out
from gemsmith.data.index import Origin
from gemsmith.data.shard_writer import ShardWriter
from gemsmith.data.shards import id_type
from gemsmith.data.sources import Source, source_documents
from gemsmith.data.survey import survey, surveyed
from gemsmith.data.tokenize import tokenize
from gemsmith.data.vocabulary import given_vocabulary
from gemsmith.errors import DataError, StorageError, TokenizerError
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import NORMAL, Piece, Vocabulary
from vocab import small_tokenizer


def build(place: Path, sources: list[Source], name: str = "built", **options: object) -> Dataset:
    return build_dataset(sources, small_tokenizer(), data_dir=place, folder=place / name, **options)  # pyright: ignore


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_what_the_plain_way_gives(tmp_path: Path) -> None:
    """Every document once, in order, but for repetitions and what is held out."""
    sources = write_corpora(tmp_path)
    dataset = build(tmp_path, sources)
    for source in sources:
        shard, seen, documents = dataset.shards[source.name], set(), []
        for document in source_documents(source, tmp_path):
            if document.alike() not in seen:
                documents.append(document)
            seen.add(document.alike())
        assert shard.n_documents == len(documents) == dataset.index.sources[source.name].counts.n_documents
        for number, document in enumerate(documents):
            here = slice(int(shard.offsets[number]), int(shard.offsets[number + 1]))
            token_ids, scored = tokenize(document, small_tokenizer(), family="gemma2")
            assert shard.token_ids[here].tolist() == token_ids
            assert shard.scored[here].tolist() == scored
            row = shard.origins[number : number + 1][0]  # pyright: ignore[reportOptionalSubscript]
            assert shard.files[row["file"]] == document.file
            assert row["line"] == document.line
            assert row["sha256"].tobytes() == document.sha256()


def test_counts_add_up(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    dataset = build(tmp_path, sources)
    counts = {name: record.counts for name, record in dataset.index.sources.items()}
    assert {name: row.n_rows for name, row in counts.items()} == {"stories": 121, "chats": 31, "code": 12, "guide": 1}
    assert {name: row.n_duplicates for name, row in counts.items()} == {"stories": 1, "chats": 1, "code": 0, "guide": 0}
    assert counts["stories"].n_held_out == sum(1 for _ in source_documents(sources[0], tmp_path, is_held_out=True)) > 3
    for row in counts.values():
        assert row.n_rows == row.n_documents + row.n_duplicates + row.n_held_out + row.n_leaked + row.n_empty
    assert counts["chats"].n_scored < counts["chats"].n_tokens
    assert counts["stories"].n_scored == counts["stories"].n_tokens
    assert dataset.index.totals.n_tokens == sum(shard.n_tokens for shard in dataset.shards.values())
    facts = dataset.index.sources["stories"].facts
    assert (facts["repository"], facts["commit"], facts["license"]) == ("a/stories", "0123abcd", "CC0-1.0")
    assert list(dataset.index.sources["code"].inputs)[:2] == ["code/part0/f0.py", "code/part0/f3.py"]


@pytest.mark.parametrize("n_workers", [2, 3])
def test_number_of_workers_changes_no_byte(tmp_path: Path, n_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.data.build._CHUNK", 3000)
    sources = write_corpora(tmp_path)
    spec = BuildSpec(max_tokens=4000)
    alone = build(tmp_path, sources, "alone", spec=spec)
    assert len(alone.index.sources["stories"].shards) > 3
    shared = build(tmp_path, sources, "shared", spec=spec, n_workers=n_workers)
    assert contents(alone.folder) == contents(shared.folder)
    assert alone.fingerprint == shared.fingerprint


def test_shards_are_split_between_documents_and_mapped(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    whole = build(tmp_path, sources, "whole").shards["stories"]
    parts = build(tmp_path, sources, "parts", spec=BuildSpec(max_tokens=1000))
    records = parts.index.sources["stories"].shards
    assert all(record.n_tokens <= 1000 for record in records)
    assert sum(record.n_documents for record in records) == whole.n_documents
    split = parts.shards["stories"]
    assert split.token_ids[:].tolist() == whole.token_ids[:].tolist()
    assert split.offsets.tolist() == whole.offsets.tolist()
    assert isinstance(split.token_ids[: int(split.offsets[1])], np.memmap)
    places = [int(offset) for offset in whole.offsets[:-1]]
    assert [split.origin(place) for place in places] == [whole.origin(place) for place in places]


def test_first_of_equal_texts_wins_across_sources(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "One cat."}, {"text": "Two dogs."}])
    write_lines(tmp_path / "b.jsonl", [{"text": "TWO  dogs."}, {"text": "Two dogs!"}, {"text": "cafe\u0301"}])
    write_lines(tmp_path / "c.jsonl", [{"text": "caf\u00e9"}, {"text": "Three."}])
    sources = [Source(name, f"{name}.jsonl", "CC0-1.0", 1.0) for name in "abc"]
    counts = build(tmp_path, sources).index.sources
    assert [counts[name].counts.n_duplicates for name in "abc"] == [0, 1, 1]
    counts = build(tmp_path, sources[::-1], "turned").index.sources
    assert [counts[name].counts.n_duplicates for name in "abc"] == [1, 1, 0]


def leaking(place: Path) -> tuple[list[Source], str]:
    """Write a source with one held-out text, and another that quotes it fully, a little, and not at all."""
    texts = [sentences(seed) for seed in range(30)]
    write_lines(place / "tests.jsonl", [{"text": text} for text in texts])
    tests = Source("tests", "tests.jsonl", "CC0-1.0", 1.0, held_out=10.0)
    secret = next(iter(source_documents(tests, place, is_held_out=True))).text
    own, quote = sentences(900, 400), " ".join(secret.split()[:15])
    write_lines(place / "web.jsonl", [{"text": f"{secret} By me."}, {"text": f"{own} {quote}"}, {"text": own[5:]}])
    return [tests, Source("web", "web.jsonl", "CC0-1.0", 1.0)], secret


def test_training_texts_that_hold_held_out_ones_are_dropped_and_counted(tmp_path: Path) -> None:
    sources, secret = leaking(tmp_path)
    dataset = build(tmp_path, sources)
    web = dataset.index.sources["web"].counts
    assert (web.n_documents, web.n_leaked, web.n_touched) == (2, 1, 2)
    assert dataset.index.sources["tests"].counts.n_covered == 0
    assert secret in list(dataset.held_out("tests"))
    kept = small_tokenizer().decode(dataset.shards["web"].token_ids[:].tolist())
    assert secret not in kept


def test_held_out_text_that_training_covers_is_counted(tmp_path: Path) -> None:
    sources, _ = leaking(tmp_path)
    dataset = build(tmp_path, sources, spec=BuildSpec(max_leak=1.0))
    assert dataset.index.sources["web"].counts.n_leaked == 0
    assert dataset.index.sources["tests"].counts.n_covered == 1


def test_held_out_repetition_of_a_training_text_drops_the_repetition_alone(tmp_path: Path) -> None:
    text = next(
        text for text in map(sentences, range(99)) if held_out("".join(filter(str.isalnum, text.casefold())), 50.0)
    )
    write_lines(tmp_path / "a.jsonl", [{"text": text}])
    write_lines(tmp_path / "b.jsonl", [{"text": text}, *({"text": sentences(n)} for n in range(300, 320))])
    sources = [Source("a", "a.jsonl", "x", 1.0), Source("b", "b.jsonl", "x", 1.0, held_out=50.0)]
    counts = build(tmp_path, sources).index.sources
    assert (counts["a"].counts.n_documents, counts["b"].counts.n_duplicates) == (1, 1)


def test_same_inputs_are_used_again_and_other_ones_build_anew(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    first = build(tmp_path, sources)
    made = {path.name: path.stat().st_ino for path in first.folder.iterdir()}
    shares = [replace(source, share=9.0, max_epochs=3) for source in sources]
    assert build(tmp_path, shares).fingerprint == first.fingerprint
    assert {path.name: path.stat().st_ino for path in first.folder.iterdir()} == made
    with (tmp_path / "stories.jsonl").open("a") as file:
        file.write('{"text": "One more."}\n')
    more = build(tmp_path, sources)
    assert more.fingerprint != first.fingerprint
    assert more.index.sources["stories"].counts.n_rows == 122
    less = build(tmp_path, [replace(sources[0], held_out=30.0), *sources[1:]])
    assert less.index.sources["stories"].counts.n_held_out > more.index.sources["stories"].counts.n_held_out
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_failed_build_leaves_the_older_dataset(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    before = contents(build(tmp_path, sources).folder)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"near line 32 of chats\.jsonl"):
        build(tmp_path, sources)
    assert contents(tmp_path / "built") == before
    assert not (tmp_path / ".built.building").exists()


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    (tmp_path / "built").mkdir()
    (tmp_path / "built/diary.txt").write_text("dear")
    with pytest.raises(DataError, match=r"empty or hold a dataset; got '.*built', which holds something else"):
        build(tmp_path, sources)
    assert (tmp_path / "built/diary.txt").read_text() == "dear"


HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_second_build_of_one_folder_is_refused(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    argv = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / ".built.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=r"one process at a time; got a second one for '.*built'"):
            build(tmp_path, sources)
        other.communicate("\n")


def test_full_disk_is_said(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": sentences(seed, 300)} for seed in range(99)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(StorageError, match=r"must be written to a disk with room; got File too large in '"):
            build(tmp_path, [Source("a", "a.jsonl", "x", 1.0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        ([], "text", r"at least one document to train on; got none in 'a' from 'a\.jsonl' \(an empty file\)"),
        ([{"text": " "}], "text", r"got none in 'a' .*'n_empty': 1"),
        ([{"text": "\ud800 half"}], "text", r"valid Unicode; got '\\ud800', half of a pair, in line 1 of a\.jsonl"),
        ([{"turns": [{"role": "SYSTEM", "text": "Hi"}]}], "dialogue", r"does not in line 1 of a\.jsonl"),
        ([{"turns": [{"role": "BOT", "text": "Hi"}]}], "dialogue", r"form 'dialogue'; got \['turns'\] in line 1 of a"),
        ([{"turns": "no"}], "dialogue", r"form 'dialogue'; got \['turns'\] in line 1 of a"),
        ([{"body": "x"}], "text", r"form 'text'; got \['body'\] in line 1 of a"),
    ],
)
def test_sources_that_cannot_be_used_are_named(
    tmp_path: Path, rows: list[dict[str, object]], form: str, message: str
) -> None:
    write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=message):
        build(tmp_path, [Source("a", "a.jsonl", "x", 1.0, form=form)])


def test_mistake_found_by_another_process_is_the_same_error(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"turns": [{"role": "SYSTEM", "text": "Hi"}]}])
    with pytest.raises(DataError, match=r"does not in line 1 of a\.jsonl"):
        build(tmp_path, [Source("a", "a.jsonl", "x", 1.0, form="dialogue")], n_workers=2)


def test_sources_need_names_of_their_own(tmp_path: Path) -> None:
    source = Source("a", "a.jsonl", "x", 1.0)
    with pytest.raises(DataError, match="names of their own; got 'a' twice"):
        build(tmp_path, [source, source])
    with pytest.raises(DataError, match="got 'no source'"):
        build(tmp_path, [])


def without(*texts: str) -> Tokenizer:
    """Return a tokenizer that lacks some pieces."""
    return Tokenizer(respelled(*texts))


def respelled(*texts: str) -> Vocabulary:
    """Return the small vocabulary with some pieces spelled otherwise."""
    vocabulary = Vocabulary.from_bytes((Path(__file__).parents[1] / "golden/small.model").read_bytes())
    ids = [i for i in range(len(vocabulary.records)) if vocabulary.piece(i).text in texts]
    return vocabulary.with_pieces({i: Piece(f"other{i}", -1e4, NORMAL) for i in ids})


def test_vocabulary_without_turn_markers_cannot_hold_conversations(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    message = "'<end_of_turn>' among its control pieces for the conversations of source 'chats'"
    with pytest.raises(DataError, match=message):
        build_dataset(sources, without("<end_of_turn>"), data_dir=tmp_path, folder=tmp_path / "built")


def test_vocabulary_that_lacks_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(respelled("<0x41>").to_bytes())
    with pytest.raises(TokenizerError, match=r"got '.*tokenizer\.model' .*there are not 256 byte pieces"):
        given_vocabulary(tmp_path)


def test_texts_need_no_turn_markers(tmp_path: Path) -> None:
    sources = [source for source in write_corpora(tmp_path) if source.name != "chats"]
    build_dataset(sources, without("<end_of_turn>"), data_dir=tmp_path, folder=tmp_path / "built")


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    sources = write_corpora(tmp_path)
    left = tmp_path / ".built.building"
    left.mkdir()
    (left / "stories.00000.tokens").write_bytes(b"half")
    (tmp_path / ".built.old").mkdir()
    dataset = build(tmp_path, sources)
    assert "half" not in (dataset.folder / "stories.00000.tokens").read_bytes().decode("latin-1")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_large_vocabularies_take_four_bytes_an_id(tmp_path: Path) -> None:
    assert (id_type(65_536), id_type(65_537), id_type(256_000)) == (np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u4"))
    record = Origin(0, 1, bytes(32))
    writer = ShardWriter(tmp_path, "a", id_type(256_000), has_mask=False)
    writer.add(np.array([255_999, 1], np.uint32), None, record)
    (shard,) = writer.close()
    assert np.fromfile(tmp_path / shard.file("tokens"), "<u4").tolist() == [255_999, 1]
    assert (shard.max_id, shard.n_tokens) == (255_999, 2)


def test_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = Source("a", "a.jsonl", "x", 1.0)
    for rows, later in (([{"text": "one"}], [{"text": "one"}, {"text": "two"}]), ([{"text": "one"}] * 2, [])):
        write_lines(tmp_path / "a.jsonl", rows)
        files = source.files(tmp_path)
        fates = survey([source], {"a": files}).fates["a"]
        write_lines(tmp_path / "a.jsonl", later)
        with pytest.raises(DataError, match="source 'a' must not change while it is read"):
            list(surveyed(source, files, fates))


MEASURE = """
import resource, sys
from pathlib import Path
from gemsmith.data.build import build_dataset
from gemsmith.data.sources import Source
from gemsmith.tokenizer import Tokenizer
place, vocabulary = Path(sys.argv[1]), Path(sys.argv[2])
source = Source("a", "a.jsonl", "x", 1.0, held_out=1.0)
build_dataset([source], Tokenizer.load(vocabulary), data_dir=place, folder=place / "built")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (5, 20):
        place = tmp_path / str(megabytes)
        place.mkdir()
        rng = np.random.default_rng(megabytes)
        with (place / "a.jsonl").open("w") as file:
            for _ in range(megabytes * 250):
                text = " ".join(map(str, rng.integers(0, 10_000, 800)))
                file.write(json.dumps({"text": text[:4000]}) + "\n")
        vocabulary = Path(__file__).parents[1] / "golden/small.model"
        argv = [sys.executable, "-c", MEASURE, str(place), str(vocabulary)]
        peaks.append(int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 5, peaks  # MiB, for 15 MB more of text
