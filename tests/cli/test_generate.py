"""generate: the text on stdout and nothing else, whatever happens on the way."""

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemsmith.cli.main import main
from gemsmith.infer.generate import Generation

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    """Return a call of generate on the tiny model: exit status, stdout, stderr."""

    def call(*argv: str) -> tuple[int, str, str]:
        status = main(["generate", *argv, "--model", str(folder)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_only_the_text_goes_to_stdout(run: Run) -> None:
    status, out, err = run("The fox", "--max-new-tokens", "8", "--seed", "3", "--json")
    text = json.loads(out)["text"]
    assert status == 0
    status, out, err = run("The fox", "--max-new-tokens", "8", "--seed", "3")
    assert (status, out) == (0, text + "\n")
    assert "tokens/s" in err


def test_json_has_what_a_program_needs(run: Run) -> None:
    _, out, _ = run("The fox", "-n", "6", "--temperature", "0", "--json")
    found = json.loads(out)
    assert found["n_tokens"] <= 6
    assert found["finish_reason"] in ("stop", "length")
    assert 0 < found["ttft_s"] < found["first_token_since_start_s"]
    assert found["peak_rss_bytes"] > 50_000_000  # torch is loaded
    if found["n_tokens"] > 1:
        assert found["tokens_per_s"] > 0


def test_the_model_in_the_box_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Once upon a time", "-n", "16", "--temperature", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "pebble"
    assert len(found["text"].split()) >= 4  # words, not noise


def test_a_seed_repeats_the_text(run: Run) -> None:
    first, second, other = (run("The", "-n", "12", "--seed", seed, "--json")[1] for seed in ("1", "1", "2"))
    assert json.loads(first)["text"] == json.loads(second)["text"] != json.loads(other)["text"]


def test_greedy_needs_no_seed(run: Run) -> None:
    first, second = (json.loads(run("The", "-n", "12", "--temperature", "0", "--json")[1]) for _ in range(2))
    assert first["text"] == second["text"]


def test_top_k_of_one_is_greedy(run: Run) -> None:
    narrow, greedy = (
        run("The", "-n", "9", "--top-k", "1", "--json"),
        run("The", "-n", "9", "--temperature", "0", "--json"),
    )
    assert json.loads(narrow[1])["text"] == json.loads(greedy[1])["text"]


def test_a_file_and_a_pipe_say_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt.txt").write_text("The fox ran\n")
    greedy = ("-n", "5", "--temperature", "0", "--json")
    from_file = run("--file", str(tmp_path / "prompt.txt"), *greedy)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The fox ran\n")))
    from_pipe, from_text = run(*greedy), run("The fox ran", *greedy)
    assert len({json.loads(out)["text"] for _, out, _ in (from_file, from_pipe, from_text)}) == 1


def test_stop_string_ends_the_text(run: Run) -> None:
    text = json.loads(run("The", "-n", "20", "--temperature", "0", "--json")[1])["text"]
    cut = json.loads(run("The", "-n", "20", "--temperature", "0", "--json", "--stop", text[3:5])[1])
    assert cut["text"] == text[: text.find(text[3:5])]
    assert cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["", "-n", "3"], "prompt"),
        (["The", "-n", "0"], "got 0"),
        (["The", "-n", "-4"], "got -4"),
        (["The", "--temperature", "nan"], "got nan"),
        (["The", "--temperature", "-1"], "got -1.0"),
        (["The", "--top-k", "0"], "got 0"),
        (["The", "--top-p", "1.5"], "got 1.5"),
        (["The", "--seed", "-1"], "got -1"),
        (["The", "--device", "tpu"], "tpu"),
        (["The fox ran home. " * 100], "256"),
        (["The", "--file", "prompt.txt"], "'prompt.txt'"),
        (["The", "fox"], "fox"),
    ],
)
def test_a_wrong_call_exits_2_and_names_the_value(argv: list[str], value: str, run: Run) -> None:
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert value in err
    assert "Traceback" not in err


def test_a_prompt_is_read_once(run: Run, tmp_path: Path) -> None:
    path, greedy = tmp_path / "prompt.cache", ("-n", "6", "--temperature", "0", "--json")
    plain = json.loads(run("The fox ran home and slept", *greedy)[1])
    _, out, err = run("The fox ran home and slept", "--prompt-cache", str(path), *greedy)
    first, before = json.loads(out), path.read_bytes()
    assert f"{plain['n_prompt_tokens']} tokens kept in {path}" in err
    _, out, err = run("The fox ran home while rain fell", "--prompt-cache", str(path), *greedy)
    longer = json.loads(out)
    assert plain["n_cached_tokens"] == 0
    assert first["n_cached_tokens"] == plain["n_prompt_tokens"] - 1
    assert 0 < longer["n_cached_tokens"] < first["n_cached_tokens"]
    assert first["text"] == plain["text"]
    assert longer["text"] == json.loads(run("The fox ran home while rain fell", *greedy)[1])["text"]
    assert path.read_bytes() == before


def test_a_prompt_cache_of_another_model_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompt.cache"
    assert main(["generate", "The fox", "-n", "1", "--prompt-cache", str(path)]) == 0
    capsys.readouterr()
    status, out, err = run("The fox", "-n", "1", "--prompt-cache", str(path))
    assert (status, out) == (1, "")
    assert "prompt cache must be of this model" in err


def test_an_unknown_model_is_a_failure_that_offers_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hi", "--model", "google/gema-2-2b-it"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "google/gemma-2-2b-it" in said.err


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in the middle of a step of the next generation."""
    advance, calls = Generation.step, []

    def interrupted(generation: Generation) -> None:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        advance(generation)

    monkeypatch.setattr(Generation, "step", interrupted)


def test_ctrl_c_keeps_what_was_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(run("The", "-n", "12", "--temperature", "0", "--json")[1])["text"]
    interrupt_at(6, monkeypatch)
    status, out, err = run("The", "-n", "12", "--temperature", "0")
    assert status == 130
    assert 0 < len(out.rstrip("\n")) < len(whole)
    assert whole.startswith(out.rstrip("\n"))
    assert "5 tokens" in err


def test_json_of_a_stopped_text_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(3, monkeypatch)
    status, out, _ = run("The", "-n", "12", "--temperature", "0", "--json")
    assert status == 130
    assert json.loads(out)["finish_reason"] == "cancelled"
    assert json.loads(out)["n_tokens"] == 2


def command(*argv: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-m", "gemsmith", *argv], capture_output=True, check=False, **options)  # pyright: ignore


def test_a_process_writes_its_text_without_a_network(folder: Path) -> None:
    argv = [sys.executable, "-m", "gemsmith", "generate", "The fox", "-n", "4", "--model", str(folder), "--json"]
    if shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0:
        argv = ["unshare", "-rn", *argv]
    result = subprocess.run(argv, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads(result.stdout)["n_tokens"] >= 1
    assert b"parameters in" in result.stderr  # the choice of device and dtype, in one line


def test_bytes_that_are_not_utf8_on_stdin_are_named_before_torch_is_loaded() -> None:
    result = command("generate", input=b"caf\xe9")
    assert result.returncode == 2
    assert b"offset 3 of stdin" in result.stderr
    assert result.stdout == b""


def test_a_reader_that_goes_away_ends_it_quietly(folder: Path) -> None:
    argv = [sys.executable, "-m", "gemsmith", "generate", "The", "-n", "200", "--model", str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert b"rror" not in process.stderr.read()
    assert process.returncode == 141


@pytest.mark.parametrize("module", ["cyclopts", "numpy", "torch.types"])
def test_ctrl_c_while_loading_leaves_no_traceback(folder: Path, module: str) -> None:
    """The key is pressed when the interpreter reports that a module has been imported."""
    argv = [sys.executable, "-X", "importtime", "-m", "gemsmith", "generate", "The", "--model", str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).rstrip().endswith(f" {module}"):
            assert line, f"{module} was never imported"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    # Where the key meets Python run by C, as an import of torch does here and there, CPython ends by the signal
    # itself, although we have handled it; a shell calls both 130.
    assert process.returncode in (130, -signal.SIGINT)
    assert out == ""
    assert said.endswith("gemsmith: stopped\n")


def test_int8_cache_can_be_chosen(run: Run) -> None:
    status, out, _ = run("The fox", "-n", "8", "--seed", "3", "--cache", "int8")
    assert status == 0
    assert out.strip()
    status, _, err = run("The fox", "--cache", "int4")
    assert status == 2
    assert "int4" in err
