"""Loading by name: device, dtype and manners are chosen and said."""

import json
import logging
from pathlib import Path
from typing import Literal

import pytest
import torch

import gemsmith.infer.device as device_module
import gemsmith.infer.load as load_module
from gemsmith.errors import ConfigError, ModelNotFoundError
from gemsmith.infer import allocator
from gemsmith.infer.device import choose_device, choose_dtype
from gemsmith.infer.lm import GEMMA_SAMPLING, LM
from gemsmith.infer.load import load, stored_dtype, suggested_sampling
from gemsmith.infer.sample import Sampling
from gemsmith.model.quantized import Matrix
from gemsmith.weights.folder import save_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("bf16") / "tiny", lm.network, tokenizer=lm.tokenizer, dtype="bfloat16")


@pytest.mark.parametrize(("is_fast", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_dtype_of_the_file_is_kept_where_the_device_is_fast_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_fast: bool, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(device_module, "has_fast_bfloat16", lambda device: is_fast)
    assert stored_dtype(folder) == "bfloat16"
    lm = load(folder, device="cpu")
    assert lm.dtype == chosen
    assert lm.generate("the", max_new_tokens=3).n_tokens > 0


def test_what_was_chosen_is_said_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gemsmith"):
        load(folder, device="cpu", dtype="float32")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{folder}: 0.1M parameters in float32 (stored in bfloat16) on cpu, ")
    assert "\n" not in record.getMessage()


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder, device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("stored", "is_fast", "chosen"),
    [
        ("float32", True, "float32"),
        ("float16", True, "float32"),
        ("float16", False, "float32"),
        ("bfloat16", True, "bfloat16"),
    ],
)
def test_float16_is_never_chosen(stored: str, is_fast: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "has_fast_bfloat16", lambda device: is_fast)
    assert choose_dtype(None, stored=stored, device=CPU) == getattr(torch, chosen)


def test_trap_plain_float16_is_refused_with_the_reason(folder: Path) -> None:
    for dtype in ("float16", torch.float16):
        with pytest.raises(ConfigError, match=r"got 'float16'\. Gemma's residual stream outgrows float16"):
            load(folder, dtype=dtype)


def test_another_dtype_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="dtype must be float32 or bfloat16; got 'int8'"):
        load(folder, dtype="int8")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cpu:x", "gpu"])
def test_a_device_that_is_not_here_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device must be one of .*cpu.*; got '{name}'"):
        choose_device(name)


@pytest.mark.parametrize(("present", "chosen"), [({"cpu"}, "cpu"), ({"cpu", "mps"}, "mps"), ({"cpu", "cuda"}, "cuda")])
def test_the_best_device_is_taken(present: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_is_present", lambda name: name in present)
    assert choose_device(None).type == chosen


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="gemma-2-2c"):
        load("google/gemma-2-2c-it")


def test_sampling_comes_from_the_folder(lm: LM, tmp_path: Path) -> None:
    place = save_folder(tmp_path / "x", lm.network, tokenizer=lm.tokenizer)
    assert load(place).sampling == GEMMA_SAMPLING
    path = place / "generation_config.json"
    (place / "MANIFEST.json").unlink()
    path.write_text(json.dumps({"eos_token_id": [1, 9], "temperature": 0.5, "top_k": 7, "do_sample": True}))
    again = load(place)
    assert again.sampling == Sampling(temperature=0.5, top_k=7)
    assert 9 in again.stop_ids


def test_top_k_zero_in_a_file_means_no_limit() -> None:
    assert suggested_sampling({"top_k": 0, "top_p": 0.9, "eos_ids": (1,)}) == Sampling(top_p=0.9)
    assert suggested_sampling({"eos_ids": (1,)}) == GEMMA_SAMPLING


def test_the_allocator_is_tuned_when_a_model_is_loaded_not_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(load_module, "tune_allocator", lambda: calls.append(1))
    load(folder, device="cpu")
    assert calls == [1]


class FakeLibrary:
    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return 1


def test_thresholds_are_set_once_in_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    for name in allocator._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    assert allocator.tune_allocator.__wrapped__()
    assert [parameter for parameter, _ in library.calls] == [-3, -1, -2]
    library.calls.clear()
    assert allocator.tune_allocator.__wrapped__(for_training=True)
    assert (-4, 0) in library.calls  # no block of its own for any size
    assert (-1, -1) in library.calls  # and the end of the heap is never given back


@pytest.mark.parametrize("name", ["MALLOC_TOP_PAD_", "GLIBC_TUNABLES"])
def test_thresholds_set_by_the_user_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    assert not allocator.tune_allocator.__wrapped__()
    assert library.calls == []


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(name)

    for name in allocator._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.os, "confstr", unknown)
    assert not allocator.tune_allocator.__wrapped__()


def test_cache_dtype_is_kept(folder: Path) -> None:
    assert load(folder, device="cpu").cache_dtype is None
    assert load(folder, device="cpu", cache_dtype="int8").cache_dtype == torch.int8


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_rounded_while_loading(bits: Literal[4, 8]) -> None:
    rounded, whole = load("pebble", bits=bits), load("pebble")
    schemes = {module.scheme.bits for module in rounded.network.modules() if isinstance(module, Matrix)}
    assert schemes == {bits}
    text = "Once upon a time there was a little girl who had a red ball."
    assert abs(rounded.score(text).nll - whole.score(text).nll) < (0.02 if bits == 8 else 0.2)


def test_bits_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    saved = load("pebble", bits=8).save(tmp_path / "rounded")
    with pytest.raises(ConfigError, match="stored in few bits; got 4"):
        load(saved, bits=4)
