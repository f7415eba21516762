"""A file comes about whole or not at all, and what prevented it is named."""

from pathlib import Path

import pytest

from gemsmith.errors import StorageError
from gemsmith.weights.whole_file import replacing_file


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for content in ("one", "two"):
        with replacing_file(path, is_ours=lambda _: True, n_bytes=3) as partial:
            partial.write_text(content)
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")

    def write() -> None:
        with replacing_file(path, is_ours=lambda _: True, n_bytes=3) as partial:
            partial.write_text("two")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("")
    path = tmp_path / "texts.jsonl" / "p.cache"
    with (
        pytest.raises(StorageError, match=r"file must be writable; got .* while saving '.*texts\.jsonl/p\.cache'"),
        replacing_file(path, is_ours=lambda _: True, n_bytes=3),
    ):
        pass
