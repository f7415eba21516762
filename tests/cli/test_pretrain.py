"""pretrain hands a recipe to the trainer and tells where the model lies."""

from pathlib import Path

import pytest

from gemsmith.cli.main import main
from gemsmith.cli.pretrain import choose_compute


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Return the calls the trainer gets."""
    calls: list[dict] = []

    def run(recipe_path: Path, **options: object) -> Path:
        calls.append({"recipe": recipe_path, **options})
        return Path("run/model")

    monkeypatch.setattr("gemsmith.recipes.pretrain.run", run)
    return calls


def test_the_trainer_gets_what_was_asked_for(runs: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "r.toml", "--data", "texts", "--out", "run", "--minutes", "7.5", "--processes", "2"]) == 0
    assert runs == [
        {
            "recipe": Path("r.toml"),
            "data_dir": Path("texts"),
            "out": Path("run"),
            "minutes": 7.5,
            "steps": None,
            "compute": choose_compute(2),
        }
    ]
    said = capsys.readouterr()
    assert said.out == "run/model\n"
    assert "log.jsonl" in said.err


def test_without_a_compiler_nothing_is_fused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not choose_compute(1).is_compiled
    assert "no C++ compiler" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert choose_compute(3).is_compiled
    assert choose_compute(3).n_processes == 3


@pytest.mark.parametrize(("supported", "dtype"), [(True, "torch.bfloat16"), (False, "torch.float32")])
def test_training_is_in_what_the_processor_multiplies(
    supported: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemsmith.infer.device.has_fast_bfloat16", lambda device: supported)
    assert str(choose_compute(1).dtype) == dtype


@pytest.mark.parametrize("length", [[], ["--minutes", "1", "--steps", "2"]])
def test_a_run_has_one_length(length: list[str], runs: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "r.toml", "--data", "d", "--out", "o", *length]) == 2
    assert "run must have a length" in capsys.readouterr().err
    assert runs == []


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["pretrain", "nowhere.toml", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(argv) == 1
    assert "nowhere.toml" in capsys.readouterr().err
