"""plot draws runs and tells where the picture is."""

import json
from pathlib import Path

import pytest

from gemsmith.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [{"step": n, "n_tokens": 100 * n, "seconds": 1.0 * n, "nll": 5.0 - n / 10} for n in (10, 20, 30)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_a_run_is_drawn_into_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'plot.png'}\n"
    assert (run / "plot.png").stat().st_size > 5000


def test_several_runs_are_drawn_where_it_is_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "both.png"
    assert main(["plot", str(run), str(run), "--by", "time", "--y", "nll", "--out", str(out)]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [([], 2, "run folder"), (["nowhere"], 1, "nowhere"), (["--y", "loss", "x"], 2, "loss")],
)
def test_a_call_that_cannot_be_drawn_is_told(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", *words]) == status
    assert said in capsys.readouterr().err
