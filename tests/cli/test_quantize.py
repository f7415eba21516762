"""quantize writes a folder that runs, and tells what it cost."""

import json
from pathlib import Path

import pytest

from gemsmith.cli.main import main
from gemsmith.errors import GemsmithError


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    sentence = "The fox ran home and slept under an old tree while rain fell softly. "
    path.write_text("".join(json.dumps({"text": sentence * n}) + "\n" for n in (4, 5, 6)))
    return path


def test_a_folder_in_few_bits_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q"
    assert main(["quantize", str(folder), str(out), "--scheme", "int8"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["generate", "The fox", "--model", str(out), "-n", "3", "--temperature", "0"]) == 0
    lineage = json.loads((out / "MANIFEST.json").read_text())["lineage"]["quantized"]
    assert lineage["method"] == "rounding"
    assert lineage["schemes"]["layers.0.mlp.up_proj"] == "int8"


def test_the_report_tells_tensors_and_quality(
    folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["quantize", str(folder), str(tmp_path / "q"), "--scheme", "int8", "--report", "--text", str(texts)]
    assert main(call) == 0
    shown = capsys.readouterr().out
    assert "layers.3.mlp.down_proj" in shown
    assert "perplexity: " in shown
    assert "divergence: " in shown
    assert main([*call, "--json", "--calibrate", str(texts)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tensors"]) == 29
    assert 0 < found["quality"]["kl"]["low"] <= found["quality"]["kl"]["value"] <= found["quality"]["kl"]["high"]
    manifest = json.loads((tmp_path / "q" / "MANIFEST.json").read_text())
    assert manifest["lineage"]["quantized"]["method"] == "gptq"


def test_a_size_is_kept(folder: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    assert (
        main(["quantize", str(folder), str(out), "--scheme", "int8", "--size", "220kB", "--calibrate", str(texts)]) == 0
    )
    assert (out / "model.safetensors").stat().st_size <= 220_000


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--scheme", "int3"], 1, "scheme must be int8, int4 or .*; got 'int3'"),
        (["--scheme", "int4"], 1, "got 32 and 40 in 'layers.0"),
        (["--embedding", "q4"], 1, "scheme must be .*; got 'q4'"),
        (["--scheme", "int8", "--size", "0"], 1, "size must be a number of bytes above 0; got '0'"),
        (["--scheme", "int8", "--size", "20MB"], 1, "size must come with calibration text .*; got 20,000,000"),
        (["--scheme", "int8", "--size", "9kB", "--calibrate", "TEXTS"], 1, "size must be at least .*; got 9,000"),
        (["--scheme", "int8", "--text", "TEXTS"], 2, "--text must come with --report"),
        (["--calibrate-tokens", "0"], 2, "--calibrate-tokens must be above 0; got 0"),
        (["--scheme", "int8", "--calibrate", "SHORT"], 1, r"at least 64 tokens.*; got \d"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    words: list[str],
    status: int,
    message: str,
    folder: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "The fox."}\n')
    places = {"TEXTS": str(texts), "SHORT": str(short)}
    assert main(["quantize", str(folder), str(tmp_path / "q"), *(places.get(word, word) for word in words)]) == status
    with pytest.raises(GemsmithError, match=message):
        raise GemsmithError(capsys.readouterr().err)
    assert not (tmp_path / "q").exists()


def test_a_model_in_few_bits_is_not_quantized_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q"
    assert main(["quantize", str(folder), str(out), "--scheme", "int8"]) == 0
    assert main(["quantize", str(out), str(tmp_path / "r"), "--scheme", "int8"]) == 1
    assert f"must be in full precision to be quantized; got {str(out)!r}" in capsys.readouterr().err
    assert main(["quantize", str(folder), str(folder), "--scheme", "int8"]) == 1
    assert "out must be another folder" in capsys.readouterr().err


def test_the_report_can_be_drawn_and_measured_with_an_int8_cache(
    folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "report.png"
    call = ["quantize", str(folder), str(tmp_path / "q"), "--scheme", "int8", "--plot", str(picture)]
    assert main([*call, "--report", "--text", str(texts), "--cache", "int8"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "divergence: " in capsys.readouterr().out
    assert main(call) == 2
    assert "--plot must come with --report" in capsys.readouterr().err
