"""Folders of transformers load here, ours load there, and whatever is wrong with one is named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from gemsmith.errors import CheckpointError, ConfigError, MemoryLimitError
from gemsmith.weights import memory
from gemsmith.weights.catalog import list_models
from gemsmith.weights.folder import load_network, save_folder
from oracle import oracle
from tiny import FAMILIES, tiny_config, tiny_network

IDS = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
SHARD_BYTES = 40_000


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(IDS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("is_sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_of_transformers_loads_here_with_equal_logits(family: str, is_sharded: bool, tmp_path: Path) -> None:
    network = tiny_network(family)
    oracle(network).save_pretrained(tmp_path, max_shard_size=SHARD_BYTES if is_sharded else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == is_sharded
    loaded = load_network(tmp_path)
    assert loaded.config == network.config
    assert torch.equal(logits_of(loaded.network), logits_of(network))


@pytest.mark.parametrize("is_sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_of_ours_loads_in_transformers_with_equal_logits(family: str, is_sharded: bool, tmp_path: Path) -> None:
    network = tiny_network(family)
    folder = save_folder(tmp_path / "m", network, max_shard_bytes=SHARD_BYTES if is_sharded else 10**9)
    assert (folder / "model.safetensors.index.json").exists() == is_sharded
    model, info = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(model.eval()), logits_of(network), rtol=0, atol=1e-4)
    theirs, ours = model.state_dict(), load_network(folder).network.state_dict()
    assert all(torch.equal(tensor, theirs[f"model.{name}"]) for name, tensor in ours.items())


def multimodal(tmp_path: Path) -> hf.PreTrainedModel:
    """Write a small Gemma 3 with its image tower through transformers."""
    text = hf.Gemma3TextConfig(
        vocab_size=300, hidden_size=40, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=256, sliding_window=8,
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)
    torch.manual_seed(0)
    model = hf.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    return model


def test_text_part_of_a_multimodal_folder_loads_and_its_towers_are_reported(tmp_path: Path) -> None:
    model = multimodal(tmp_path)
    loaded = load_network(tmp_path)
    n_towers = sum(
        not name.startswith("model.language_model.") and "lm_head" not in name for name in model.state_dict()
    )
    assert len(loaded.report.skipped) == n_towers > 10
    assert any("vision_tower" in name for name in loaded.report.skipped)
    theirs = logits_of(model.language_model if hasattr(model, "language_model") else model)
    torch.testing.assert_close(logits_of(loaded.network), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.language_model.", "language_model."])
def test_every_spelling_of_the_names_loads(prefix: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits_of(load_network(folder).network), logits_of(tiny_network("gemma2")))


def test_stored_head_equal_to_the_embedding_is_skipped(folder: Path, edit_tensors: Callable[..., None]) -> None:
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, {"lm_head.weight": embedding})
    assert load_network(folder).report.skipped == ("lm_head.weight",)


def test_stored_rotary_table_is_skipped(folder: Path, edit_tensors: Callable[..., None]) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, {name: torch.ones(6)})
    assert load_network(folder).report.skipped == (name,)


def test_parameters_are_views_of_the_file_and_writing_leaves_it_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    loaded = load_network(folder)
    parameters = list(loaded.network.parameters())
    assert loaded.report.is_mapped
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1
    with torch.no_grad():
        parameters[0].zero_()
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "float32"])
def test_dtype_is_the_one_asked_for(dtype: Any, folder: Path) -> None:
    loaded = load_network(folder, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert {str(parameter.dtype) for parameter in loaded.network.parameters()} == {f"torch.{name}"}
    assert (loaded.report.dtype, bool(loaded.report.cast)) == (name, name != "float32")
    exact = tiny_network("gemma2").embed_tokens.weight.to(getattr(torch, name))
    assert torch.equal(loaded.network.embed_tokens.weight, exact)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_without_a_dtype_it_is_the_one_of_most_bytes(
    dtype: str, tmp_path: Path, edit_tensors: Callable[..., None]
) -> None:
    folder = save_folder(tmp_path / "m", tiny_network("gemma2"), dtype=dtype)
    (folder / "MANIFEST.json").unlink()
    edit_tensors(folder, {"model.norm.weight": torch.zeros(40, dtype=torch.float32)})
    loaded = load_network(folder)
    assert {str(parameter.dtype) for parameter in loaded.network.parameters()} == {f"torch.{dtype}"}
    assert loaded.report.cast == (() if dtype == "float32" else ("model.norm.weight",))


def test_file_with_tensors_at_odd_places_loads(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + n_header].rstrip() + b" "
    header += b" " * (1 - (8 + len(header)) % 2)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + n_header :])
    assert (8 + len(header)) % 2 == 1
    assert torch.equal(logits_of(load_network(folder).network), logits_of(tiny_network("gemma2")))


def test_generation_config_adds_its_eos_ids(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 107]}))
    assert load_network(folder).config.eos_ids == (1, 107)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


Q = "model.layers.1.self_attn.q_proj.weight"
WRONG_TENSORS = [
    ({Q: None}, r"has no tensor 'layers.1.self_attn.q_proj.weight'; it holds 45 of 46"),
    ({Q: zeros(40, 48)}, rf"tensor '{Q}' must have the shape \[48, 40\] .*; got \[40, 48\]"),
    ({"model.layers.4.mlp.up_proj.weight": zeros(64, 40)}, "unexplained 'model.layers.4.mlp.up_proj.weight'"),
    ({"model.layers.0.self_attn.q_norm.weight": zeros(12)}, "unexplained 'model.layers.0.self_attn.q_norm.weight'"),
    (
        {"model.layers.0.self_attn.q_proj.bias": zeros(48)},
        r"unexplained 'model.layers.0.self_attn.q_proj.bias' .*\[48\]",
    ),
    ({Q.removeprefix("model."): zeros(48, 40)}, r"stand once in a checkpoint; got .*layers.1.self_attn.q_proj.weight'"),
    ({Q: zeros(48, 40, dtype=torch.int8)}, rf"tensor '{Q}' must be of F32, BF16, F16; got I8"),
    ({Q: zeros(48, 40, dtype=torch.float8_e4m3fn)}, rf"tensor '{Q}' must be of .*; got F8_E4M3"),
    ({"lm_head.weight": zeros(300, 40)}, "tensor 'lm_head.weight' must equal the embedding"),
    ({"lm_head.weight": zeros(300, 40, dtype=torch.bfloat16)}, "tensor 'lm_head.weight' must equal the embedding"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_TENSORS, ids=[str(i) for i in range(len(WRONG_TENSORS))])
def test_a_wrong_tensor_is_named(
    changes: dict[str, torch.Tensor | None], message: str, folder: Path, edit_tensors: Callable[..., None]
) -> None:
    edit_tensors(folder, changes)
    with pytest.raises(CheckpointError, match=message):
        load_network(folder)


def test_a_configuration_of_another_size_is_noticed(folder: Path, edit_config: Callable[..., None]) -> None:
    edit_config(folder, intermediate_size=65)
    with pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.gate_proj.weight' .*\[65, 40\] .*; got \[64, 40\]"):
        load_network(folder)


def test_an_unknown_key_is_refused_and_may_be_allowed(folder: Path, edit_config: Callable[..., None]) -> None:
    edit_config(folder, mystery=1)
    with pytest.raises(ConfigError, match=r"'mystery' = 1 in '?.*config.json"):
        load_network(folder)
    assert load_network(folder, allow_config_keys=["mystery"]).config == tiny_config("gemma2")


@pytest.mark.parametrize("dtype", [torch.int8, "int4", "float64", torch.float64])
def test_a_dtype_no_network_has_is_refused(dtype: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"dtype must be one of .*; got '{str(dtype).removeprefix('torch.')}'"):
        load_network(folder, dtype=dtype)


def test_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json must be readable; got No such file"):
        load_network(folder)


def test_broken_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config.json must be a JSON object; got Expecting value"):
        load_network(folder)


class Bomb:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "model.safetensors", "consolidated.00.pth"])
def test_a_pickle_is_named_and_never_opened(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(CheckpointError, match=name):
        load_network(folder)
    with pytest.raises(
        CheckpointError, match=r"got .* which is a pickle\. A pickle can run code|corrupted|Name its folder"
    ):
        load_network(folder / name)
    assert not (tmp_path / "boom").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "boom").exists()  # the bomb was live


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    load_network(folder)
    assert not (tmp_path / "boom").exists()


def test_a_model_larger_than_memory_is_refused_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_params = tiny_config("gemma2").n_params
    free = n_params * 3 + memory.WORKSPACE_BYTES
    monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": free)
    with pytest.raises(
        MemoryLimitError, match=r"got .* needed in float32 and .* free on cpu\. Load it with dtype='bfloat16'"
    ):
        load_network(folder)
    load_network(folder, dtype="bfloat16")
    free = n_params + memory.WORKSPACE_BYTES
    with pytest.raises(MemoryLimitError, match="No dtype would fit: choose a smaller model"):
        load_network(folder, dtype="bfloat16")


def test_a_file_cut_while_it_is_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemsmith.weights import folder as module

    check = module.check_fits
    path = folder / "model.safetensors"

    def cut(*args: Any, **kwargs: Any) -> None:
        check(*args, **kwargs)
        os.truncate(path, path.stat().st_size - 100)

    monkeypatch.setattr(module, "check_fits", cut)
    with pytest.raises(CheckpointError, match=r"must hold \d+ bytes; got fewer in .*model.safetensors', of \d+ bytes"):
        load_network(folder, dtype="bfloat16")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 2**31},
        {"head_dim": 2**31},
        {"hidden_size": 2**31},
        {"intermediate_size": 2**31},
        {"num_attention_heads": 2**31, "head_dim": 2**31},
    ],
    ids=["heads", "head", "width", "feed_forward", "overflow"],
)
def test_sizes_far_beyond_the_weights_are_named(
    changes: dict[str, int], tmp_path: Path, edit_config: Callable[..., None]
) -> None:
    folder = save_folder(tmp_path / "m", tiny_network())
    edit_config(folder, **changes)
    (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"sizes must be those of the weights that are there; got a matrix of \d"):
        load_network(folder)
    (entry,) = (entry for entry in list_models(around=tmp_path) if entry.place == "folder")
    assert "got a matrix of" in entry.note
