"""The examples run, with the very commands their pages show, shortened."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from gemsmith.cli.main import main

FOLDER = Path(__file__).parent.parent / "examples/pretrain_small"


def commands() -> list[list[str]]:
    (first, *_) = re.findall(r"```sh\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    return [shlex.split(line) for line in first.splitlines()]


def shortened(words: list[str]) -> list[str]:
    line = shlex.join(words)
    line = re.sub("(--tokens) 1M", r"\1 24K", re.sub("(--params) 1M", r"\1 300K", line))
    return shlex.split(line + " 300" if words[0] == "python" else line)


def test_text_becomes_a_scored_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gemsmith.evaluate.probe._NEW_TOKENS", 2)
    monkeypatch.setattr("gemsmith.evaluate.probe._SLICE_BYTES", 500)
    monkeypatch.setattr("gemsmith.train.cost._SIZES", (64,))
    shutil.copytree(FOLDER, tmp_path / "example")
    monkeypatch.chdir(tmp_path / "example")
    outputs = {}
    for words in commands():
        program, *argv = shortened(words)
        if program == "python":
            monkeypatch.setattr(sys, "argv", argv)
            runpy.run_path(argv[0], run_name="__main__")
        else:
            assert main(argv) == 0, (argv, capsys.readouterr().err)
        outputs[" ".join(words[:3])] = capsys.readouterr().out
    run = tmp_path / "example/run"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = [row["bpb"] for row in rows if "bpb" in row]
    assert held_out[-1] < held_out[0]
    assert list(rows[-1]["held_out"]) == ["tales", "notes"]
    assert (tmp_path / "example/curves.png").is_file()
    scored = outputs["gemsmith eval bpb"].splitlines()
    assert [line.split()[-1].rsplit("/")[-1] for line in scored] == ["tales.held_out.jsonl", "notes.held_out.jsonl"]
    assert all(0 < float(line.split()[0]) < 8 for line in scored)


def test_the_corpus_is_small_and_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["make_corpus.py", str(tmp_path / name)])
        runpy.run_path(str(FOLDER / "make_corpus.py"), run_name="__main__")
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1]
    assert sum(map(len, contents[0])) < 500_000
