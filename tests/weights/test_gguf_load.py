"""GGUF files loaded: those we write, and those the gguf package writes from the same model."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from gguf import GGMLQuantizationType, quants

import gemsmith as gs
from gemsmith.errors import CheckpointError, ConfigError, TokenizerError
from gemsmith.kernels.quantized import Scheme, dequantize
from gemsmith.model.transformer import Transformer
from gemsmith.weights import gguf_load
from gemsmith.weights.catalog import find_model, list_models
from gemsmith.weights.gguf_load import GgufModel
from gemsmith.weights.gguf_names import is_shifted, tensor_name
from gemsmith.weights.opening import open_config, open_model
from gemsmith.weights.quantized import quantized_modules
from gguf_files import byte_vocabulary, small_gguf, small_network

IDS = torch.tensor([[2, *range(10, 60)]])
ALL = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]


def foreign_file(path: Path, network: Transformer, kind: str = "F16", **changes: Any) -> Path:
    """Write a model through the gguf package, with keys changed, or removed where the value is ..."""
    config, layer = network.config, network.config.layers[-1]
    writer = gguf.GGUFWriter(path, config.family)
    keys: dict[str, Any] = {
        "context_length": config.max_seq_len, "embedding_length": config.d_model, "block_count": config.n_layers,
        "feed_forward_length": layer.d_ff, "attention.head_count": layer.n_heads,
        "attention.head_count_kv": layer.n_kv_heads, "attention.key_length": layer.head_dim,
        "attention.value_length": layer.head_dim, "attention.layer_norm_rms_epsilon": config.norm_eps,
    }  # fmt: skip
    local = config.layers[0]
    if local.window is not None:
        keys["attention.sliding_window"] = local.window
    if config.family == "gemma2":
        keys |= {"attn_logit_softcapping": local.attn_softcap, "final_logit_softcapping": config.final_softcap}
    if config.family == "gemma3":
        wide = config.layers[5]
        keys |= {"rope.freq_base": wide.rope_theta, "rope.freq_base_swa": local.rope_theta}
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": wide.rope_factor}
    keys = {f"{config.family}.{key}": value for key, value in keys.items()}
    pieces = byte_vocabulary().pieces()
    keys |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.text.encode() for piece in pieces],
        "tokenizer.ggml.scores": [float(piece.score) for piece in pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in pieces],
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.padding_token_id": 0,
    }  # fmt: skip
    for key, value in {**keys, **changes}.items():
        if value is not ...:
            add_key(writer, key, value)
    for name, parameter in network.named_parameters():
        numbers = parameter.detach().float().numpy()
        quantized = GGMLQuantizationType.F32 if is_shifted(name) else GGMLQuantizationType[kind]
        data = quants.quantize(numbers + (1 if is_shifted(name) else 0), quantized)
        writer.add_tensor(tensor_name(name, config.family), data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders: list[tuple[type, Callable[..., None]]] = [
        (bool, writer.add_bool), (int, writer.add_uint32), (float, writer.add_float32), (str, writer.add_string),
        (list, writer.add_array),
    ]  # fmt: skip
    next(add for kind, add in adders if isinstance(value, kind))(key, value)


def logits(model: GgufModel, **words: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.network(dtype="float32", **words).network(IDS)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("kind", ALL)
def test_a_file_of_the_gguf_package_is_the_model_it_was_made_from(family: str, kind: str, tmp_path: Path) -> None:
    network = small_network(family)
    model = GgufModel(foreign_file(tmp_path / "x.gguf", network, kind))
    assert model.config == network.config
    # The same rounding done by the package, run in float32.
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not is_shifted(name):
                data = quants.quantize(parameter.numpy(), GGMLQuantizationType[kind])
                parameter.copy_(torch.from_numpy(quants.dequantize(data, GGMLQuantizationType[kind])))
        wanted = network(IDS)
    assert torch.allclose(logits(model, is_native=False), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_our_files_read_back_within_their_precision(family: str, tmp_path: Path) -> None:
    with torch.no_grad():
        wanted = small_network(family)(IDS)
    model = GgufModel(small_gguf(tmp_path, family))
    assert model.config == small_network(family).config
    assert torch.allclose(logits(model), wanted, atol=0.05, rtol=0)
    assert not torch.equal(logits(model), wanted)


def test_norms_lose_the_one_that_is_stored(tmp_path: Path) -> None:
    network = GgufModel(small_gguf(tmp_path)).network(dtype="float32").network
    wanted = dict(small_network().named_parameters())
    for name, parameter in network.named_parameters():
        if is_shifted(name):
            assert torch.allclose(parameter, wanted[name], atol=3e-7), name


def test_a_file_in_the_dtype_asked_for_is_mapped(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "x.gguf", small_network(), "BF16")
    loaded = GgufModel(path).network(dtype="bfloat16")
    assert loaded.report.is_mapped
    assert loaded.report.manifest is None
    assert loaded.files._is_view(loaded.network.get_parameter("layers.0.mlp.up_proj.weight"))
    assert {"blk.0.attn_norm.weight", "output_norm.weight"} <= set(loaded.report.cast)


@pytest.mark.parametrize(("kind", "scheme"), [("q8_0", Scheme(8, 32)), ("q4_0", Scheme(4, 32))])
def test_few_bits_are_kept_as_they_are(kind: str, scheme: Scheme, tmp_path: Path) -> None:
    model = GgufModel(small_gguf(tmp_path, kind=kind))
    loaded = model.network(dtype="float32")
    assert loaded.report.schemes["layers.0.self_attn.q_proj"] == scheme
    assert set(loaded.report.schemes) >= {"embed_tokens", "layers.3.mlp.down_proj"}
    dense = model.network(dtype="float32", is_native=False).network
    for name, q in quantized_modules(loaded.network).items():
        assert torch.equal(dequantize(q), dense.get_parameter(f"{name}.weight")), name
    # What is left is the rounding of activations to 8 bits.
    with torch.no_grad():
        wanted, got = (x.log_softmax(-1) for x in (dense(IDS), loaded.network(IDS)))
    assert (wanted.exp() * (wanted - got)).sum(-1).mean() < 2e-3


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_without_kernels_the_same_bits_are_kept(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GgufModel(small_gguf(tmp_path, kind=kind))
    packed = quantized_modules(model.network(dtype="float32").network)
    monkeypatch.setattr(gguf_load, "native", SimpleNamespace(is_loaded=lambda: False))
    plain = quantized_modules(model.network(dtype="float32").network)
    assert packed.keys() == plain.keys()
    for name, q in plain.items():
        assert torch.equal(q.values, packed[name].values), name
        assert torch.equal(q.scales, packed[name].scales), name


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_ids_equal_those_of_the_original_vocabulary(family: str, tmp_path: Path) -> None:
    tokenizer = GgufModel(small_gguf(tmp_path, family)).tokenizer()
    original = sentencepiece.SentencePieceProcessor(model_proto=byte_vocabulary()._proto)
    for text in ("aber abe", "a  b\n\n", "<b>x</b>", "<end_of_turn><bos>", "\N{SNOWMAN}", "  a", "<unused3>ab"):
        assert tokenizer.encode(text, control=True) == original.encode(text)
        assert tokenizer.encode(text) == byte_vocabulary().encode(text)
    assert tokenizer._proto == byte_vocabulary()._proto


def test_rows_without_a_piece_are_no_pieces(tmp_path: Path) -> None:
    tokens = [*(piece.text.encode() for piece in byte_vocabulary().pieces()[:298]), b"[PAD298]", b"[PAD299]"]
    kinds = [*(piece.kind for piece in byte_vocabulary().pieces()[:298]), 5, 5]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    model = GgufModel(foreign_file(tmp_path / "x.gguf", small_network(), **changes))
    assert model.tokenizer().vocab_size == 298
    assert model.config.vocab_size == 300


def test_markers_other_programs_made_control_pieces_are_read_again(tmp_path: Path) -> None:
    pieces = byte_vocabulary().pieces()
    kinds = [3 if piece.kind == 4 and piece.text.startswith("<u") else piece.kind for piece in pieces]
    tokens = [(p.text.replace("\u2581", " ") if p.kind == 4 else p.text).encode() for p in pieces]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    model = GgufModel(foreign_file(tmp_path / "x.gguf", small_network(), **changes))
    assert model.tokenizer()._proto == byte_vocabulary()._proto


def test_the_end_of_a_turn_ends_a_text(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "x.gguf", small_network(), **{"tokenizer.ggml.eot_token_id": 6})
    assert GgufModel(path).config.eos_ids == (1, 6)
    path = foreign_file(tmp_path / "x.gguf", small_network(), **{"tokenizer.ggml.eos_token_id": 6})
    assert GgufModel(path).config.eos_ids == (1, 6)


def test_another_chat_template_is_told_and_never_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    template = {"tokenizer.chat_template": "{{ cycler.__init__.__globals__.os.system('false') }}"}
    with caplog.at_level(logging.WARNING, "gemsmith"):
        GgufModel(foreign_file(tmp_path / "x.gguf", small_network(), **template)).tokenizer()
    assert "its chat template is not Gemma's" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gemsmith"):
        GgufModel(small_gguf(tmp_path)).tokenizer()
    assert caplog.text == ""


def test_image_towers_are_passed_over_and_an_equal_head_too(tmp_path: Path) -> None:
    network, path = small_network(), tmp_path / "x.gguf"
    foreign_with(path, network, {"v.patch_embd.weight": np.ones((2, 2), np.float32), "output.weight": None})
    assert GgufModel(path).network(dtype="float32").report.skipped == ("v.patch_embd.weight", "output.weight")


def foreign_with(path: Path, network: Transformer, tensors: dict[str, np.ndarray | None]) -> Path:
    """Write a model with more tensors; None is a copy of the embedding."""
    original = gguf.GGUFWriter.write_header_to_file

    def with_more(writer: gguf.GGUFWriter) -> None:
        for name, data in tensors.items():
            embedding = network.embed_tokens.weight.detach().numpy().astype(np.float16)
            writer.add_tensor(name, embedding if data is None else data)
        original(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_more)
        return foreign_file(path, network)


def test_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    other = np.zeros((300, 64), np.float16)
    path = foreign_with(tmp_path / "x.gguf", small_network(), {"output.weight": other})
    with pytest.raises(CheckpointError, match=r"tensor 'output.weight' must equal the embedding"):
        GgufModel(path).network()


def test_unexplained_misshapen_and_missing_tensors_are_named(tmp_path: Path) -> None:
    path = foreign_with(tmp_path / "x.gguf", small_network(), {"blk.0.extra.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"got the unexplained 'blk.0.extra.weight' of shape \[2, 2\]"):
        GgufModel(path).network()
    path = foreign_file(tmp_path / "x.gguf", small_network(), **{"gemma2.feed_forward_length": 32})
    with pytest.raises(
        CheckpointError, match=r"'blk.0.ffn_gate.weight' must have the shape \[32, 64\] of its metadata"
    ):
        GgufModel(path).network()
    path = foreign_file(tmp_path / "x.gguf", small_network(), **{"gemma2.block_count": 5})
    with pytest.raises(CheckpointError, match=r"has no tensor for 'layers.4.\S+'; it holds \d+ of \d+"):
        GgufModel(path).network()


@pytest.mark.parametrize(
    "changes",
    [
        {"attention.head_count": 2**31, "attention.head_count_kv": 2**31},
        {"attention.key_length": 2**31, "attention.value_length": 2**31},
        {"embedding_length": 2**31},
        {"feed_forward_length": 2**31},
        {"attention.head_count": 2**31, "attention.key_length": 2**31, "attention.value_length": 2**31},
    ],
    ids=["heads", "head", "width", "feed_forward", "overflow"],
)
def test_sizes_far_beyond_the_file_are_named(changes: dict[str, int], tmp_path: Path) -> None:
    changes = {f"gemma2.{key}": value for key, value in changes.items()}
    path = foreign_file(tmp_path / "x.gguf", small_network(), **changes)
    with pytest.raises(CheckpointError, match=r"sizes must be those of the weights that are there; got a matrix of \d"):
        GgufModel(path)
    (entry,) = (entry for entry in list_models(around=tmp_path) if entry.place == "file")
    assert "got a matrix of" in entry.note


def test_a_file_without_an_embedding_is_no_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"has no tensor 'token_embd.weight'; it holds 0 others"):
        GgufModel(tmp_path / "x.gguf")


TOKENIZER_ERRORS = [
    (
        {"model": "gpt2"},
        TokenizerError,
        r"tokenizer.ggml.model must be 'llama', a SentencePiece vocabulary; got 'gpt2'",
    ),
    ({"tokens": ...}, ConfigError, r"tokenizer.ggml.tokens must be a list of texts; got no such key"),
    ({"tokens": [b"a", b"b", b"<bos>"]}, TokenizerError, r"must have <bos>, .*; got no <eos> among 3 pieces"),
    ({"bos_token_id": 7}, ConfigError, r"bos_token_id must be that of '<bos>', 2; got 7"),
    ({"scores": [0.0]}, TokenizerError, r"must be equally many; got 300, 1 and 300"),
    ({"scores": [0.0] * 299 + [float("nan")]}, ConfigError, r"tokenizer.ggml.scores must be finite; got nan"),
    ({"scores": [float("-inf")] * 300}, ConfigError, r"tokenizer.ggml.scores must be finite; got -inf"),
    ({"scores": ["x"]}, ConfigError, r"tokenizer.ggml.scores must be a list of numbers"),
    (
        {"token_type": [9] * 300},
        TokenizerError,
        r"must be one SentencePiece could have; got piece '<mask>' of the kind 9",
    ),
    ({"add_bos_token": False}, ConfigError, r"add_bos_token must be True, as for every Gemma; got False"),
    ({"add_space_prefix": True}, ConfigError, r"pass --allow-config-key tokenizer.ggml.add_space_prefix"),
]


@pytest.mark.parametrize(("changes", "error", "message"), TOKENIZER_ERRORS)
def test_vocabularies_that_cannot_be_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    changes = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        GgufModel(foreign_file(tmp_path / "x.gguf", small_network(), **changes)).tokenizer()


def test_pieces_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemsmith.weights.gguf_tokenizer.MAX_PIECES", 299)
    with pytest.raises(ConfigError, match=r"tokenizer.ggml.tokens must be at most 299 pieces; got 300"):
        GgufModel(small_gguf(tmp_path))


def test_a_habit_may_be_allowed(tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "x.gguf", small_network(), **{"tokenizer.ggml.add_bos_token": False})
    assert GgufModel(path, allow_config_keys=["tokenizer.ggml.add_bos_token"]).tokenizer().bos_id == 2


def test_the_dtype_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype must be one of float32, bfloat16, float16; got 'int8'"):
        GgufModel(small_gguf(tmp_path)).network(dtype="int8")


def test_a_gguf_file_is_loaded_by_its_name(tmp_path: Path) -> None:
    path = small_gguf(tmp_path)
    assert find_model(str(path)) == path
    lm = gs.load(str(path), device="cpu", dtype="float32")
    wanted = gs.LM(small_network(), byte_vocabulary())
    words = {"max_new_tokens": 12, "sampling": gs.Sampling(temperature=0.0)}
    assert lm.generate("aber", **words).text == wanted.generate("aber", **words).text
    assert open_config(path) == lm.config
    loaded, tokenizer = open_model(path, dtype="float32")
    assert tokenizer is not None
    assert loaded.report.folder == path
