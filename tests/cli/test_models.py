"""models lists what is here; pull hands over to the hub."""

import json
from pathlib import Path

import pytest

from gemsmith.cli.main import main


def test_folders_of_the_working_directory_are_listed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["models", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["models"]}
    assert found["./tiny"]["n_params"] == 74_440
    assert found["./tiny"]["note"] == "fits"


def test_the_list_is_a_table(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "size", "here", "found", "in"]
    assert any(line.startswith("./tiny") and "fits" in line for line in lines[1:])


def test_pull_prints_the_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemsmith.weights.hub.pull", lambda name: tmp_path / name)
    assert main(["pull", "google/gemma-2-2b-it"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'google/gemma-2-2b-it'}\n"
    assert "gemsmith chat --model google/gemma-2-2b-it" in said.err


def test_pull_offline_is_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["pull", "google/gemma-2-2b-it"]) == 1
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
