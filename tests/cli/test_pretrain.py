"""pretrain hands a recipe to the trainer and tells where the model lies."""

import io
import json
import logging
import re
from pathlib import Path

import pytest

from gemsmith.cli.main import main
from gemsmith.cli.pretrain import ComputeFlags, _count, choose_compute
from gemsmith.recipes.dial import Dial
from small_recipe import write_small_recipe


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Return the calls the trainer gets."""
    calls: list[dict] = []

    def run(recipe_path: Path, **options: object) -> Path:
        calls.append({"recipe": recipe_path, **options})
        return Path("run/model")

    monkeypatch.setattr("gemsmith.recipes.pretrain.run", run)
    monkeypatch.setattr("gemsmith.train.cost.measure_matrix_rate", lambda dtype: 1e12)
    return calls


def test_the_trainer_gets_what_was_asked_for(
    runs: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["pretrain", "r.toml", "--data", "texts", "--out", str(tmp_path), "--minutes", "7.5", "--processes", "2"]
    assert main([*argv, "--micro-batch", "4096", "--recompute", "--data-workers", "3", "--save-every", "9"]) == 0
    (call,) = runs
    options = call.pop("options")
    flags = ComputeFlags(processes=2, micro_batch="4096", recompute=True, data_workers=3)
    assert call == {
        "recipe": Path("r.toml"),
        "data_dir": Path("texts"),
        "out": tmp_path,
        "minutes": 7.5,
        "steps": None,
        "compute": choose_compute(flags),
    }
    assert (options.dial, options.save_every_steps, options.matrix_rate) == (Dial(), 9, 1e12)
    assert set(options.machine) == {"cpu", "memory"}
    said = capsys.readouterr()
    assert said.out == "run/model\n"
    assert "log.jsonl" in said.err


def test_the_dial_takes_counts_in_words(runs: list[dict], tmp_path: Path) -> None:
    assert main(["pretrain", "there/r.toml", "--out", str(tmp_path), "--params", "1.5M", "--tokens", "100M"]) == 0
    assert runs[0]["options"].dial == Dial(1_500_000, 100_000_000)
    assert runs[0]["data_dir"] == Path("there")


def test_a_rate_measured_before_is_used_again(runs: list[dict], tmp_path: Path) -> None:
    argv = ["pretrain", "r.toml", "--out", str(tmp_path), "--steps", "3"]
    assert main(argv) == 0
    first = runs[0]
    session = {**first["options"].machine, "compute": {"dtype": str(first["compute"].dtype)}, "matrix_rate": 5e11}
    (tmp_path / "run.json").write_text(json.dumps({"sessions": [session]}))
    assert main(argv) == 0
    assert runs[1]["options"].matrix_rate == 5e11


def test_fusing_is_for_machines_without_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gemsmith.kernels.native.library", lambda: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not choose_compute(ComputeFlags()).is_compiled
    assert "no C++ compiler" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert choose_compute(ComputeFlags()).is_compiled
    assert not choose_compute(ComputeFlags(compile=False)).is_compiled
    monkeypatch.setattr("gemsmith.kernels.native.library", object)
    assert not choose_compute(ComputeFlags()).is_compiled
    assert choose_compute(ComputeFlags(compile=True)).is_compiled


def test_fusing_without_a_compiler_is_refused(
    runs: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["pretrain", "r.toml", "--out", "o", "--steps", "1", "--compile"]) == 2
    assert "--compile must have a C++ compiler; got none" in capsys.readouterr().err


@pytest.mark.parametrize(("supported", "dtype"), [(True, "torch.bfloat16"), (False, "torch.float32")])
def test_training_is_in_what_the_processor_multiplies(
    supported: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemsmith.infer.device.has_fast_bfloat16", lambda device: supported)
    assert str(choose_compute(ComputeFlags()).dtype) == dtype


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run must have a length; got none"),
        (["--minutes", "1", "--steps", "2"], "run must have a length; got --minutes 1.0 and --steps 2"),
        (["--tokens", "1M", "--steps", "2", "--params", "1M"], "got --steps 2 and --tokens 1M"),
        (["--minutes", "nan"], "--minutes must be a number above 0; got nan"),
        (["--steps", "0"], "--steps must be a number above 0; got 0"),
        (["--tokens", "many"], "--tokens must be a count such as 300, 64K, 12.5M or 2B; got 'many'"),
        (["--params", "0.1"], "--params must be a count .* got '0.1'"),
        (["--steps", "1", "--micro-batch", "-4"], "--micro-batch must be a count .* got '-4'"),
    ],
)
def test_a_length_that_means_nothing_is_refused(
    words: list[str], said: str, runs: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "r.toml", "--data", "d", "--out", "o", *words]) == 2
    assert runs == []

    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "count"), [("300", 300), ("64k", 64_000), ("12.5M", 12_500_000), ("2B", 2 * 10**9), ("1e6", 10**6)]
)
def test_counts_are_read(text: str, count: int) -> None:
    assert _count(text, "--tokens") == count


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretrain", "--out", "o", "--steps", "1"], "recipe must be a file; got none"),
        (["pretrain", "r.toml", "--steps", "1"], "--out must name the run folder; got none"),
        (["pretrain", "--plan"], "--plan must have --params to follow from; got none"),
    ],
)
def test_a_call_that_lacks_something_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["pretrain", "nowhere.toml", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(argv) == 1
    assert "nowhere.toml" in capsys.readouterr().err


def test_a_plan_shows_every_number_with_its_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gemsmith.cli.plan.measure_matrix_rate", lambda dtype: 1e12)
    assert main(["pretrain", "--params", "12M", "--tokens", "100M", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    assert names >= {"model.d_model", "model.d_ff", "batch.tokens", "optimizer.matrix_rate", "parameters", "steps"}
    assert all(len(line.split()) > 2 for line in lines)
    assert any(line.startswith("tokens") and "100,000,000" in line for line in lines)
    assert main(["pretrain", "--params", "12M", "--plan"]) == 0
    assert "arXiv:2203.15556" in capsys.readouterr().out


def test_the_proof_is_told_and_decides_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gemsmith.recipes.prove import Proof

    found = [Proof((None, None)), Proof((None, "kill 2: weights"))]
    monkeypatch.setattr("gemsmith.recipes.prove.prove_resume", lambda path, **options: found.pop(0))
    assert main(["pretrain", "--prove-resume", "r.toml"]) == 0
    assert capsys.readouterr().out == "2 of 2 kills, bit-equal\n"
    assert main(["pretrain", "--prove-resume", "r.toml"]) == 1
    assert "kill 2: weights" in capsys.readouterr().out


def test_a_run_folder_tells_all_and_stays_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_small_recipe(tmp_path), tmp_path / "run"
    assert main(["pretrain", str(recipe), "--out", str(out), "--steps", "20", "--probes", "2"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out / 'model'}\n"
    assert "step 10: " in said.err
    files = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
    assert set(files) >= {"recipe.toml", "run.json", "log.jsonl", "plot.png", "samples.jsonl"}
    assert sum(files.values()) < 1_000_000
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], "held_out" in row) for row in rows] == [(10, False), (10, True), (20, False), (20, True)]
    assert list(rows[-1]["held_out"]) == ["stories"]
    assert rows[2]["matrix_share"] > 0
    assert list((out / "tensorboard").iterdir())
    steps = [json.loads(line)["step"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert steps == [10, 20]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_instead_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stderr", screen)
    recipe = write_small_recipe(tmp_path)
    assert main(["pretrain", str(recipe), "--out", str(tmp_path / "run"), "--steps", "10", "--probes", "0"]) == 0
    said = screen.getvalue()
    assert "100%" in said
    assert "step 10 · 0 s left" in said
    for word in ("nats/token", "tokens/s", "of matrix rate", "gradient"):
        assert word in said
    assert "nats a token" not in said
    assert logging.getLogger("gemsmith.steps").level == logging.NOTSET
