"""Curves of runs: what is drawn, from which rows, in which unit."""

import json
import sys
from pathlib import Path

import pytest

from gemsmith.errors import DataError
from gemsmith.recipes import plot as module
from gemsmith.recipes.plot import Curve, plot, smoothed


def write_run(place: Path, *, n_rows: int = 20, held_out: tuple[str, ...] = ("tales", "notes")) -> Path:
    place.mkdir()
    rows = []
    for number in range(1, n_rows + 1):
        at = {"step": 10 * number, "n_tokens": 200_000 * number, "seconds": 30.0 * number}
        rows.append({**at, "nll": 8.0 - number / 10})
        if number % 10 == 0 and held_out:
            rows.append({**at, "bpb": 2.0 - number / 100, "held_out": dict.fromkeys(held_out, 1.0)})
    (place / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Return what is handed to the drawing."""
    calls: list[tuple] = []

    def draw(panels: dict, scale: object, path: Path) -> Path:
        calls.append((panels, scale))
        return path

    monkeypatch.setattr(module, "_draw", draw)
    return calls


def test_a_picture_comes_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = plot(
        [write_run(tmp_path / "one"), write_run(tmp_path / "two")], tmp_path / "out" / "curves.png", by="time"
    )
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 5_000 < len(content) < 300_000


def test_several_runs_share_the_axes(tmp_path: Path, drawn: list[tuple]) -> None:
    plot([write_run(tmp_path / "one"), write_run(tmp_path / "two", held_out=())], tmp_path / "c.png")
    ((panels, scale),) = drawn
    assert [curve.label for curve in panels["nll"]] == ["one", "two"]
    assert [curve.label for curve in panels["bpb"]] == ["one"]
    assert scale.label == "tokens, millions"
    assert panels["nll"][0].x[-1] == pytest.approx(4.0)
    assert panels["bpb"][0] == Curve("one", [2.0, 4.0], [1.9, 1.8])


def test_a_single_run_shows_its_sources(tmp_path: Path, drawn: list[tuple]) -> None:
    plot([write_run(tmp_path / "one")], tmp_path / "c.png", of="bpb")
    ((panels, _),) = drawn
    assert [curve.label for curve in panels["bpb"]] == ["one", "tales", "notes"]
    assert list(panels) == ["bpb"]


@pytest.mark.parametrize(
    ("n_rows", "label", "last"),
    [(400, "hours", 400 / 120), (20, "minutes", 10.0), (3, "seconds", 90.0)],
)
def test_time_has_the_unit_that_suits_it(
    tmp_path: Path, drawn: list[tuple], n_rows: int, label: str, last: float
) -> None:
    plot([write_run(tmp_path / "one", n_rows=n_rows)], tmp_path / "c.png", by="time")
    ((panels, scale),) = drawn
    assert scale.label == f"time in training, {label}"
    assert panels["nll"][0].x[-1] == pytest.approx(last)


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    assert smoothed([1.0, 2.0, 9.0]) == [1.0, 2.0, 9.0]
    values = [float(n) for n in range(100)]
    assert smoothed(values)[:3] == [0.0, 0.5, 1.5]
    assert smoothed(values)[-1] == 98.5


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"with a log\.jsonl; got '.*nowhere'"):
        plot([tmp_path / "nowhere"], tmp_path / "c.png")


def test_a_run_without_such_numbers_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must have rows of bpb; got none in one"):
        plot([write_run(tmp_path / "one", held_out=())], tmp_path / "c.png", of="bpb")


def test_without_matplotlib_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DataError, match=r"matplotlib; got none .*pip install 'gemsmith\[train\]'"):
        plot([write_run(tmp_path / "one")], tmp_path / "c.png")
