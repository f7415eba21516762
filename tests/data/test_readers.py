"""Files of every kind give rows; what cannot be read is named by file, line or byte."""

import bz2
import gzip
import lzma
import sys
from pathlib import Path

import pytest
import zstandard

from gemsmith.data.documents import documents_of
from gemsmith.data.readers import SourceFile, find_files, open_packed, read_numbered, read_rows, read_whole
from gemsmith.errors import DataError

PACK = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
LINES = b'{"text": "one"}\n\n{"text": "zw\xc3\xb6lf"}\n' + b'{"text": "more"}\n' * 5000


@pytest.mark.parametrize("suffix", PACK)
def test_lines_keep_their_numbers_however_packed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](LINES))
    found = list(read_numbered(path))
    assert found[:2] == [(1, {"text": "one"}), (3, {"text": "zwölf"})]
    assert (len(found), found[-1][0]) == (5002, 5003)


@pytest.mark.parametrize("suffix", PACK)
def test_whole_files_are_read_however_packed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.md{suffix}"
    path.write_bytes(PACK[suffix](b"# Title\n\nText.\n"))
    assert not SourceFile(path, "a").holds_lines
    assert read_whole(path) == "# Title\n\nText.\n"


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("keep", [0.4, 0.99])
def test_file_cut_off_is_named_not_taken_for_whole(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    data = PACK[suffix](LINES)
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf"near line \d+ of a\.jsonl\{suffix}"):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_file_that_only_says_it_is_packed_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(LINES)
    (tmp_path / f"b.md{suffix}").write_bytes(LINES)
    with pytest.raises(DataError, match=rf"near line 1 of a\.jsonl\{suffix}"):
        list(read_rows(tmp_path / f"a.jsonl{suffix}"))
    with pytest.raises(DataError, match=rf"file must be readable; got .*b\.md\{suffix}"):
        read_whole(tmp_path / f"b.md{suffix}")


def test_zst_frames_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(PACK[".zst"](LINES[:16]) + PACK[".zst"](LINES[16:]))
    assert len(list(read_rows(path))) == 5002


def test_zst_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(PACK[".zst"](LINES))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"got 'a\.jsonl\.zst'. Run pip install 'gemsmith\[data\]'"):
        list(read_rows(tmp_path / "a.jsonl.zst"))


def test_line_with_wrong_bytes_is_named_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b'{"text": "\xff"}\n' + LINES)
    with pytest.raises(DataError, match=r"near line 5004 of a\.jsonl"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("data", "found"), [(b"abc\x00def", "a zero byte at 3"), (b"abc\xffdef", "byte 0xff at 3"), (b"\xc3", "byte 0xc3")]
)
def test_binary_file_is_named(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=rf"{found}.* of '.*a\.txt'"):
        read_whole(tmp_path / "a.txt")


def test_binary_files_are_passed_over_when_the_source_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\x00")
    files = find_files(tmp_path, name="t", include=["*.txt"])
    with pytest.raises(DataError, match=r"b\.txt"):
        list(documents_of(files, form="text"))
    found = list(documents_of(files, form="text", skips_binary=True))
    assert [(d.text, d.is_binary, d.file) for d in found] == [("fine", False, "t/a.txt"), ("", True, "t/b.txt")]


def test_folder_gives_matching_files_in_order_without_hidden_ones_and_links(tmp_path: Path) -> None:
    for name in ("b/z.py", "a/y.py", "a/x.txt", "w.py", ".git/v.py", "a/.u.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    (tmp_path / "link.py").symlink_to(tmp_path / "w.py")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    names = {
        patterns: [f.name for f in find_files(tmp_path, name="s", include=patterns)]
        for patterns in (("**/*.py",), ("**/*.txt", "a/*"), (".git/*.py",))
    }
    assert list(names.values()) == [["s/a/y.py", "s/b/z.py", "s/w.py"], ["s/a/x.txt", "s/a/y.py"], ["s/.git/v.py"]]


def test_folder_without_patterns_gives_everything(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("1")
    assert [f.name for f in find_files(tmp_path, name="s", include=())] == ["s/a.md"]


def test_patterns_that_match_nothing_and_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got \*\.py, which match none"):
        find_files(tmp_path, name="s", include=["*.py"])
    with pytest.raises(DataError, match=r"got '.*nowhere', which is not there"):
        find_files(tmp_path / "nowhere", name="s", include=())
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(DataError, match=r"a folder, as include is given; got '.*a\.txt'"):
        find_files(tmp_path / "a.txt", name="s", include=["*"])


def test_opened_file_is_closed_by_its_context(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(PACK[".zst"](b"abc"))
    with open_packed(path) as file:
        assert file.read() == b"abc"
    assert file.closed
