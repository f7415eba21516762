"""eval bpb gives bits per byte of a file."""

import json
import math
from pathlib import Path

import pytest

from gemsmith.cli.main import main


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "The fox ran home.", "other": "Rain."}, {"text": "An old tree slept.", "other": "Rain."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bits_per_byte_are_those_the_model_scores(
    folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gemsmith.infer.load import load

    assert main(["eval", "bpb", str(folder), str(texts), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    words = ["The fox ran home.", "An old tree slept."]
    lm = load(folder)
    nats = -sum(math.fsum(lm.score(text).logprobs) for text in words)
    n_bytes = sum(map(len, words))
    assert found["n_bytes"] == n_bytes
    assert found["bpb"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-4)


def test_another_field_can_be_measured(folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "bpb", str(folder), str(texts), "--field", "other"]) == 0
    assert "bits per byte (10 bytes" in capsys.readouterr().out


def test_a_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "bpb", str(folder), "nowhere.jsonl"]) == 1
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_several_files_have_a_line_each(folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "bpb", str(folder), str(texts), str(texts), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert main(["eval", "bpb", str(folder), str(texts), str(texts)]) == 0
    assert capsys.readouterr().out.count(str(texts)) == 2


def test_a_call_without_a_file_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "bpb", str(folder)]) == 2
    assert "must have a file of texts; got none" in capsys.readouterr().err


def test_bits_per_byte_with_an_int8_cache_are_nearly_the_same(
    folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for flags in ((), ("--cache", "float32"), ("--cache", "int8")):
        assert main(["eval", "bpb", str(folder), str(texts), "--json", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["bpb"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] != found[0]
    assert found[2] == pytest.approx(found[0], rel=2e-3)


def test_divergence_of_a_cache_and_of_another_model(
    folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "divergence", str(folder), str(texts), "--cache", "int8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cache"] == "int8"
    assert 0 < found["kl"]["value"] < 1e-2
    assert main(["eval", "divergence", str(folder), str(texts), "--original", str(folder)]) == 0
    assert "+0.000% (95%" in capsys.readouterr().out
    assert main(["eval", "divergence", str(folder), str(texts), "--tokens", "1"]) == 2
    assert "--tokens must be at least 2; got 1" in capsys.readouterr().err


def test_the_changed_model_alone_is_rounded(folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for flags in ((), ("--original", str(folder))):
        assert main(["eval", "divergence", str(folder), str(texts), "--bits", "8", "--json", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["kl"] == found[1]["kl"]
    assert found[0]["kl"]["value"] > 0


def test_a_model_is_not_compared_with_itself(folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "divergence", str(folder), str(texts)]) == 2
    said = capsys.readouterr().err
    assert f"two things to compare; got {str(folder)!r} alone" in said
    assert "--original" in said
    assert "--cache" in said


def test_models_of_other_vocabularies_are_not_compared(
    folder: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "divergence", str(folder), str(texts), "--original", "pebble"]) == 1
    assert "the same vocabulary to be compared; got 8,192 and 500 pieces" in capsys.readouterr().err


def test_perplexity_of_a_text_with_its_interval(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("The fox ran home and slept under an old tree while rain fell softly. " * 12)
    assert main(["eval", "perplexity", str(folder), str(book), "--context", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["low"] < found["perplexity"] < found["high"]
    assert math.log(found["perplexity"]) * found["n_tokens"] == pytest.approx(found["nll"])
    assert found["bpb"] == pytest.approx(found["nll"] / math.log(2) / len(book.read_bytes()))
    assert main(["eval", "perplexity", str(folder), str(book), "--context", "64"]) == 0
    out = capsys.readouterr().out
    assert f"perplexity {found['perplexity']:.4f} per token" in out
    assert "windows of 64 tokens" in out


def test_perplexity_of_a_text_too_short_names_its_length(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("The fox.")
    assert main(["eval", "perplexity", str(folder), str(tmp_path / "note.txt")]) == 1
    assert "in 8 bytes" in capsys.readouterr().err
