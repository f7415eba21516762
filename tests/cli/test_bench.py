"""bench: speeds, load and memory beside the machine's limits, as table, JSON and picture. No number is judged."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from gemsmith.cli.bench import RivalFlags, opened
from gemsmith.cli.main import main
from gemsmith.errors import ConfigError
from gemsmith.evaluate import limits, rivals
from gemsmith.evaluate.limits import Limits
from gemsmith.evaluate.speed import Reading
from gemsmith.infer.lm import LM

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--prefill", "8", "--prefill", "16", "--context", "8", "--new-tokens", "3", "--runs", "2")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a call of bench on the tiny model, with limits that take no time to measure."""
    monkeypatch.setattr(
        limits, "measure_limits", lambda **_: Limits(1e9, {"float32": 1e9, "bfloat16": 3e9, "bfloat16 tiles": None})
    )

    def call(*argv: str) -> tuple[int, str, str]:
        status = main(["bench", str(folder), *argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_json_has_every_measurement(run: Run, folder: Path) -> None:
    status, out, _ = run(*SHORT, "--threads", "1", "--json")
    found = json.loads(out)
    assert status == 0
    assert [(s["subject"], s["phase"], s["n_tokens"]) for s in found["speeds"]] == [
        ("gemsmith", "prefill", 8),
        ("gemsmith", "prefill", 16),
        ("gemsmith", "decode", 8),
    ]
    assert found["bits"] == {"gemsmith": 32.0}
    for speed in found["speeds"]:
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert len(speed["rates"]) == 2
    assert 0 < found["load_s"] < found["first_token_s"]
    assert found["peak_rss"] > 50_000_000
    assert found["threads"] == 1
    assert (found["model"], found["dtype"]) == (str(folder), "float32")


def test_shares_are_what_a_token_needs_times_its_rate_over_the_limit(run: Run, folder: Path) -> None:
    from gemsmith.infer.load import load

    _, out, _ = run(*SHORT, "--json")
    found = json.loads(out)
    lm = load(folder)
    prefill, _, decode = found["speeds"]
    assert prefill["share"] == pytest.approx(limits.prefill_products(lm.config, 8) * prefill["median"] / 1e9)
    n_bytes = found["weights"] + limits.cache_read_bytes(lm.config, 8 + 1, torch.float32)
    assert found["weights"] == 4 * lm.config.n_params
    assert decode["share"] == pytest.approx(n_bytes * decode["median"] / 1e9)


def test_the_table_names_what_was_measured(run: Run) -> None:
    status, out, _ = run(*SHORT)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["tokens", "program", "tokens/s", "lowest", "highest", "of", "the", "limit"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["prefill", "8", "gemsmith"],
        ["prefill", "16", "gemsmith"],
        ["decode", "8", "gemsmith"],
    ]
    assert all(line.endswith("%") for line in lines[1:4])
    assert "1.0 GB/s of memory" in out
    assert "tiles" not in out
    assert "gemsmith 32.00" in next(line for line in lines if line.startswith("bits of a weight"))


def test_another_program_takes_turns(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def stand_in(name: str, *_: object, **options: object):
        seen.append((name, options))
        yield rivals.Rival(lambda _prompt, n_new: Reading(2.0, 0.5 if n_new else None), n_bytes=None)

    monkeypatch.setattr(rivals, "rival", stand_in)
    picture = tmp_path / "speed.png"
    argv = ("--against", "llama.cpp", "--against-model", "some.gguf", "--plot", str(picture), "--json")
    status, out, err = run(*SHORT, *argv)
    assert status == 0
    assert json.loads(out)["bits"] == {"gemsmith": 32.0, "llama.cpp": None}
    theirs = [s for s in json.loads(out)["speeds"] if s["subject"] == "llama.cpp"]
    assert [(s["phase"], s["median"], s["share"]) for s in theirs] == [
        ("prefill", 4.0, None),
        ("prefill", 8.0, None),
        ("decode", 2.0, None),
    ]
    assert seen == [("llama.cpp", {"model": Path("some.gguf"), "max_tokens": 16 + 3 + 1})]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert str(picture) in err


@pytest.mark.parametrize(
    ("argv", "status", "value"),
    [
        (["--threads", "0"], 2, "got 0"),
        (["--runs", "0"], 1, "n_runs must be at least 1; got 0"),
        (["--prefill", "1"], 1, "got 1"),
        (["--prefill", "9999"], 1, "context of 256; got 10032"),
        (["--against", "ollama"], 2, "ollama"),
        (["--against-model", "a.gguf"], 2, "must come with one --against, whose model it is; got 'a.gguf' and none"),
        (
            ["--against", "llama.cpp", "--against", "openvino", "--against-model", "a.gguf"],
            2,
            "got 'a.gguf' and llama.cpp, openvino",
        ),
    ],
)
def test_wrong_calls_name_the_value(argv: list[str], status: int, value: str, run: Run) -> None:
    found, out, err = run(*argv)
    assert (found, out) == (status, "")
    assert value in err
    assert "Traceback" not in err


def test_a_program_that_is_not_installed_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # pyright: ignore[reportArgumentType]
    status, out, err = run(*SHORT, "--against", "llama.cpp")
    assert (status, out) == (1, "")
    assert "pip install llama-cpp-python" in err


def test_a_picture_that_cannot_be_drawn_is_told_before_the_work(run: Run, tmp_path: Path) -> None:
    status, out, err = run(*SHORT, "--plot", str(tmp_path))
    assert (status, out) == (1, "")
    assert f"must be a file that can be written; got {str(tmp_path)!r}, a folder" in err


def test_programs_on_the_processor_do_not_race_a_model_elsewhere() -> None:
    lm = cast(LM, SimpleNamespace(device=torch.device("cuda")))
    with (
        ExitStack() as stack,
        pytest.raises(ConfigError, match=r"must be left out for a model on 'cuda'; got llama\.cpp, which compute on"),
    ):
        opened(stack, lm, "pebble", RivalFlags(against=("llama.cpp",)), max_tokens=16)
