"""Files we write: the gguf package and llama.cpp read the same model in them."""

import os
from pathlib import Path
from typing import Any

import gguf
import jinja2
import numpy as np
import pytest
import torch
from gguf import quants

from gemsmith.chat import Turn, compile_chat
from gemsmith.errors import ConfigError, StorageError
from gemsmith.weights.catalog import find_model
from gemsmith.weights.gguf_load import GgufModel
from gemsmith.weights.gguf_names import is_shifted, parameter_name
from gemsmith.weights.gguf_tokenizer import is_own_template, render_tokenizer
from gemsmith.weights.gguf_write import save_gguf
from gemsmith.weights.opening import open_model
from gemsmith.weights.tokenizer_config import CHAT_TEMPLATE
from gguf_files import byte_vocabulary, small_gguf, small_network
from tiny import tiny_network


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_the_gguf_package_reads_the_same_numbers(family: str, kind: str, tmp_path: Path) -> None:
    path = small_gguf(tmp_path, family, kind)
    ours = dict(GgufModel(path).network(dtype="float32", is_native=False).network.named_parameters())
    theirs = gguf.GGUFReader(path)
    assert {tensor.tensor_type.name for tensor in theirs.tensors} == {"F32", kind.upper()}
    assert len(theirs.tensors) == len(ours)
    for tensor in theirs.tensors:
        name = parameter_name(tensor.name, family)
        assert name is not None
        numbers = quants.dequantize(tensor.data, tensor.tensor_type) - (1 if is_shifted(name) else 0)
        assert np.array_equal(numbers.reshape(ours[name].shape), ours[name].detach().numpy()), tensor.name


def test_the_gguf_package_reads_the_same_words(tmp_path: Path) -> None:
    fields = gguf.GGUFReader(small_gguf(tmp_path, "gemma3", "q8_0")).fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["general.architecture"] == "gemma3"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert found["gemma3.attention.sliding_window"] == 8
    assert found["gemma3.rope.scaling.factor"] == 8.0
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (tokens[5], kinds[5]) == ("<start_of_turn>", gguf.TokenType.CONTROL)
    assert (tokens[8], kinds[8]) == ("  ", gguf.TokenType.USER_DEFINED)
    known = {value for value in vars(gguf.Keys.Tokenizer).values() if isinstance(value, str)}
    assert {name for name in found if name.startswith("tokenizer.")} <= known


TALKS = [
    [Turn("user", " Hi <there> \n")],
    [Turn("user", "a"), Turn("model", " b\n"), Turn("user", "c")],
    [Turn("system", " Be brief. "), Turn("user", " a"), Turn("model", "b"), Turn("user", "c")],
    [Turn("system", "  "), Turn("user", "a")],
]


@pytest.mark.parametrize("turns", TALKS)
def test_the_template_writes_what_we_write(turns: list[Turn]) -> None:
    tokenizer = byte_vocabulary()
    messages = [{"role": {"model": "assistant"}.get(t.role, t.role), "content": t.content} for t in turns]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(CHAT_TEMPLATE).render(
        messages=messages, bos_token="<bos>", add_generation_prompt=True
    )
    ids = compile_chat(turns, tokenizer, family="gemma3", open_answer=True).token_ids
    assert text == tokenizer.decode(ids, skip_control=False)
    assert is_own_template(text)


def test_rows_that_blocks_do_not_fill_stay_in_float16(tmp_path: Path) -> None:
    network = small_network()
    config = network.config
    layers = tuple(layer.__class__(**{**vars(layer), "d_ff": 40}) for layer in config.layers)
    network = type(network)(config.replace(layers=layers), dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    written = save_gguf(tmp_path / "x.gguf", network, tokenizer=byte_vocabulary(), kind="q4_0", name="x")
    assert written.formats == {"Q4_0": 1 + 4 * 6, "F16": 4, "F32": 4 * 4 + 1}
    assert GgufModel(written.path).config == network.config


def test_embedding_rows_without_a_piece_are_filled_up() -> None:
    words = render_tokenizer(byte_vocabulary(290), n_rows=300, eos_ids=(1, 6))
    assert words["tokenizer.ggml.tokens"][289:291] == [b"<unused8>", b"[PAD290]"]
    assert words["tokenizer.ggml.token_type"].tolist()[-1] == 5
    assert len(words["tokenizer.ggml.scores"]) == 300
    assert words["tokenizer.ggml.eot_token_id"] == 6
    with pytest.raises(ConfigError, match=r"eos_ids must be <eos> and at most one other .*; got \[1, 6, 7\]"):
        render_tokenizer(byte_vocabulary(), n_rows=300, eos_ids=(1, 6, 7))


def save(path: Path, **words: Any) -> Path:
    given = {"network": small_network(), "tokenizer": byte_vocabulary(), "kind": "f16", "name": "x", **words}
    return save_gguf(path, given.pop("network"), **given).path


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="type must be one of f16, bf16, q8_0, q4_0; got 'q5_k'"):
        save(tmp_path / "x.gguf", kind="q5_k")
    with pytest.raises(ConfigError, match="attn_scale must be what readers of GGUF take"):
        save(tmp_path / "x.gguf", network=tiny_network())
    with pytest.raises(ConfigError, match="family must be gemma, gemma2 or gemma3 to be written as GGUF"):
        save(tmp_path / "x.gguf", network=tiny_network("vaultgemma"))
    with pytest.raises(StorageError, match=r"file must be called something.gguf; got '.*x.bin'"):
        save(tmp_path / "x.bin")
    with pytest.raises(StorageError, match=r"folder of the file must exist; got '.*nowhere'"):
        save(tmp_path / "nowhere" / "x.gguf")
    (tmp_path / "mine.gguf").write_text("notes")
    with pytest.raises(StorageError, match=r"must be new or one of its kind; got '.*mine.gguf', which"):
        save(tmp_path / "mine.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.gguf"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.gguf")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="file must be writable; got 'No space left on device' while saving"):
        save(path, kind="q8_0")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_too_small_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.weights.whole_file.shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(StorageError, match=r"must have room for the whole file; got 0.0 MB for 0.2 MB"):
        save(tmp_path / "x.gguf")


IDS = torch.tensor([[2, *range(300, 420)]])


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean divergence of two networks' distributions, in nats."""
    one, other = one.log_softmax(-1), other.log_softmax(-1)
    return float((one.exp() * (one - other)).sum(-1).mean())


def test_pebble_survives_in_16_bits_and_in_few(tmp_path: Path) -> None:
    loaded, tokenizer = open_model(find_model("pebble"), dtype="float32")
    assert tokenizer is not None
    with torch.no_grad():
        wanted = loaded.network(IDS)
        # Measured: root mean square errors of 2.1e-6, 0.032 and 0.49; divergences of 7.5e-9, 3.7e-4 and 0.095 nats.
        for kind, most_error, most_nats in (("f16", 1e-5, 1e-7), ("q8_0", 0.05, 8e-4), ("q4_0", 0.75, 0.16)):
            path = save_gguf(tmp_path / f"{kind}.gguf", loaded.network, tokenizer=tokenizer, kind=kind, name="p").path
            model = GgufModel(path)
            assert model.config == loaded.config
            dense = model.network(dtype="float32", is_native=False).network(IDS)
            assert (dense - wanted).square().mean().sqrt() < most_error
            assert divergence(wanted, dense) < most_nats
            # Few bits in their own: only activations are rounded besides.
            assert divergence(dense, model.network(dtype="float32").network(IDS)) < 6e-4
    read = GgufModel(path).tokenizer()
    text = "Once upon a time,  a <b>wolf</b>\n\n\tsaid: 123 \N{SNOWMAN} <end_of_turn>"
    assert read.encode(text) == tokenizer.encode(text)
    assert read.encode(text, control=True) == tokenizer.encode(text, control=True)
    assert read.pieces() == tokenizer.pieces()


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_llama_cpp_writes_the_same_text_as_we_do(kind: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    loaded, tokenizer = open_model(find_model("pebble"), dtype="float32")
    assert tokenizer is not None
    path = save_gguf(tmp_path / "p.gguf", loaded.network, tokenizer=tokenizer, kind=kind, name="pebble").path
    theirs = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=1)
    prompt = "Once upon a time there was a little girl who"
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    assert theirs.tokenize(prompt.encode(), add_bos=True, special=False) == ids
    network = GgufModel(path).network(dtype="float32", is_native=False).network
    for _ in range(64):
        theirs.reset()
        theirs.eval(ids)
        their_best = int(np.argmax(theirs.scores[len(ids) - 1]))
        with torch.no_grad():
            ours = network(torch.tensor([ids]))[0, -1]
        best = int(ours.argmax())
        if best != their_best:
            # From here on the texts are different ones; the two must have been as good as equal.
            assert float(ours[best] - ours[their_best]) < 0.05
            return
        ids.append(best)
