"""Every way a command line can end has its exit status and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemsmith.cli import app as app_module
from gemsmith.cli.main import main
from gemsmith.errors import CheckpointError, SamplingError


def ending_in(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Return the exit status of a command that ends in `error`."""

    def run(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(app_module, "run", run)
    return main(["doctor"])


def test_bare_call_prints_five_things_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  gemsmith ")]
    assert len(lines) == 5


def test_five_things_name_verbs_that_exist() -> None:
    lines = [line.split() for line in app_module.FIVE_THINGS.splitlines() if line.startswith("  gemsmith ")]
    assert {words[1] for words in lines} <= set(app_module.VERBS)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import gemsmith

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == gemsmith.__version__


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["genrate", "hi"], "genrate"),
        (["doctor", "--josn"], "--josn"),
        (["info", "pebble", "--context", "long"], "long"),
    ],
)
def test_a_wrong_call_exits_2_and_names_the_word(
    argv: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert word in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_failure_exits_1_with_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending_in(monkeypatch, CheckpointError("checkpoint must be whole; got 'a'. Copy it again.")) == 1
    assert capsys.readouterr().err == "gemsmith: checkpoint must be whole; got 'a'. Copy it again.\n"


def test_a_setting_outside_its_range_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending_in(monkeypatch, SamplingError("temperature must be at least 0; got -1. Use 0.")) == 2


def test_a_defect_is_told_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GEMSMITH_TRACEBACK", raising=False)
    assert ending_in(monkeypatch, ZeroDivisionError("division by zero")) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in said
    assert "GEMSMITH_TRACEBACK=1" in said


def test_a_defect_shows_its_place_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMSMITH_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        ending_in(monkeypatch, ZeroDivisionError())


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending_in(monkeypatch, KeyboardInterrupt()) == 130
    assert "stopped" in capsys.readouterr().err


def test_an_import_broken_by_ctrl_c_counts_as_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> int:
        try:
            os.kill(os.getpid(), 2)
        except KeyboardInterrupt:
            raise ImportError("numpy failed to import") from None
        return 0

    monkeypatch.setattr(app_module, "run", run)
    assert main(["doctor"]) == 130


def python(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, **options)  # pyright: ignore


@pytest.mark.parametrize("verb", [[], *([verb] for verb in app_module.VERBS)])
def test_help_imports_neither_torch_nor_the_model(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """All verbs in one process would hide which one is guilty; torch itself is never paid for."""
    code = (
        "import sys; from gemsmith.cli.main import main; status = main(sys.argv[1:]); "
        "heavy = [n for n in sys.modules if n == 'torch' or n.startswith(('torch.', 'gemsmith.model', 'numpy'))]; "
        "print(sorted(heavy), file=sys.stderr); sys.exit(status)"
    )
    result = python("-c", code, *verb, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    assert "Usage: gemsmith" in result.stdout


def test_importing_the_package_imports_no_torch() -> None:
    result = python("-c", "import sys, gemsmith; assert 'torch' not in sys.modules; print(gemsmith.preset.__name__)")
    assert result.stdout.strip() == "preset", result.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    argv = [sys.executable, "-m", "gemsmith"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have a device that is always full")
def test_a_full_disk_behind_stdout_is_a_failure_in_words() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-m", "gemsmith"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert result.stderr == b"gemsmith: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_closed_stream_is_named(
    stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, stream, None)
    status = main(["doctor"])
    monkeypatch.undo()
    assert status == 2
    assert "stdin and stdout must be open" in capsys.readouterr().err


def test_completion_installs_for_a_shell(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "gemsmith.bash")
    result = python("-m", "gemsmith", "--install-completion", "--shell", "bash", "--output", script,
                    env={**os.environ, "HOME": str(tmp_path)})  # fmt: skip
    assert result.returncode == 0, result.stderr
    with open(script) as lines:
        assert "generate" in lines.read()


def test_every_public_name_resolves() -> None:
    import gemsmith

    missing = [name for name in gemsmith.__all__ if not hasattr(gemsmith, name)]
    assert missing == []
    assert set(gemsmith._HOMES) | {"__version__"} == set(gemsmith.__all__)


def test_an_unknown_public_name_is_refused() -> None:
    import gemsmith

    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        gemsmith.lod  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
