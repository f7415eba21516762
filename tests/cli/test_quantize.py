"""quantize writes a folder that runs, and tells what it cost."""

import json
import shutil
import sys
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
    assert main(["quantize", str(folder), str(out), "--size", "220kB", "--calibrate", str(texts)]) == 0
    assert (out / "model.safetensors").stat().st_size <= 220_000


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--scheme", "int3"], 1, "scheme must be int8, int4 or .*; got 'int3'"),
        (["--scheme", "int4"], 1, "got 32 and 40 in 'layers.0"),
        (["--embedding", "q4"], 1, "scheme must be .*; got 'q4'"),
        (["--size", "0"], 1, "size must be a number of bytes above 0; got '0'"),
        (["--size", "20MB"], 1, "size must come with calibration text .*; got 20,000,000"),
        (["--size", "9kB", "--calibrate", "TEXTS"], 1, "size must be at least .*; got 9,000"),
        (["--scheme", "int8", "--size", "20MB"], 1, "must be left out with a size.*; got 'int8' and 20,000,000"),
        (["--embedding", "bf16", "--size", "20MB"], 1, "must be left out with a size.*; got 'bf16' and 20,000,000"),
        (["--scheme", "int8", "--text", "TEXTS"], 2, "--text must come with --report"),
        (["--scheme", "int8", "--report", "--text", "none.jsonl"], 1, "got 'none.jsonl', which is not there"),
        (["--scheme", "int8", "--report", "--text", "SHORT"], 1, "texts must be at least 2 .*; got 1"),
        (["--calibrate-tokens", "0"], 2, "--calibrate-tokens must be at least 1; got 0"),
        (["--text-tokens", "1"], 2, "--text-tokens must be at least 2; got 1"),
        (["--scheme", "int8", "--calibrate", "TEXTS", "--calibrate-tokens", "9"], 1, "at least 64.*; got 9"),
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
    assert f"must be a folder of dense weights; got {str(out)!r}, a model in few bits" in capsys.readouterr().err
    assert main(["quantize", str(folder), str(folder), "--scheme", "int8"]) == 1
    assert "out must be another folder" in capsys.readouterr().err


def test_places_are_checked_before_the_work(
    folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemsmith.recipes import quantized_folder

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is rounded for a place that cannot be written")

    monkeypatch.setattr(quantized_folder, "quantize_network", never)
    call = ["quantize", str(folder), "--scheme", "int8"]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert main([*call, str(other)]) == 1
    assert f"written by quantize; got {str(other)!r}, which holds another model" in capsys.readouterr().err
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("rain")
    assert main([*call, str(notes)]) == 1
    assert "which holds 'diary.txt'" in capsys.readouterr().err
    assert main([*call, str(texts / "q")]) == 1
    assert "folder must be writable; got " in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main([*call, str(tmp_path / "deep" / "q")]) == 1
    assert "folder must be writable; got " in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


def test_a_picture_that_cannot_be_drawn_is_told_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["quantize", str(folder), str(tmp_path / "q"), "--scheme", "int8", "--report", "--plot"]
    pytest.importorskip("matplotlib")
    assert main([*call, str(tmp_path)]) == 1
    assert f"must be a file that can be written; got {str(tmp_path)!r}, a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # pyright: ignore[reportArgumentType]
    assert main([*call, str(tmp_path / "report.png")]) == 1
    assert "must be drawn with matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_the_report_is_told_though_drawing_fails(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from gemsmith.errors import DataError
    from gemsmith.evaluate import loss_plot

    def fail(*_: object, **__: object) -> None:
        raise DataError("no room for the picture")

    monkeypatch.setattr(loss_plot, "plot_losses", fail)
    call = ["quantize", str(folder), str(tmp_path / "q"), "--scheme", "int8", "--report", "--json"]
    assert main([*call, "--plot", str(tmp_path / "report.png")]) == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)["tensors"]) == 29
    assert "no room for the picture" in said.err


def test_a_folder_of_quantize_is_written_anew(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    for scheme in ("int8", "int8-asym"):
        assert main(["quantize", str(folder), str(out), "--scheme", scheme]) == 0
        lineage = json.loads((out / "MANIFEST.json").read_text())["lineage"]["quantized"]
        assert lineage["schemes"]["layers.0.mlp.up_proj"] == scheme


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
