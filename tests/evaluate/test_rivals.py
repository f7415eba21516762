"""Other programs are called as they want to be, and one that is missing is named. Stand-ins take their place."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gemsmith.errors import ConfigError
from gemsmith.evaluate.rivals import PACKAGES, rival
from gemsmith.infer.lm import LM
from gemsmith.infer.load import load
from gemsmith.tokenizer import train_tokenizer
from gemsmith.weights.folder import save_folder
from tiny import tiny_network

PROMPT = [2, 5, 9, 11, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["the fox ran home and slept under an old tree"] * 50, vocab_size=440)
    network = tiny_network("gemma", vocab_size=tokenizer.vocab_size)
    return save_folder(tmp_path_factory.mktemp("models") / "tiny", network, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return load(folder)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_program_is_named_with_what_to_install(
    name: str, lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name][0], None)  # pyright: ignore[reportArgumentType]
    with (
        pytest.raises(ConfigError, match=f"got '{name}'.*pip install {PACKAGES[name][1][:12]}"),
        rival(name, lm, folder, model=None, max_tokens=16),
    ):
        pass


def test_llama_cpp_gets_a_gguf_file_and_as_many_threads(lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Llama:
        def __init__(self, **options: Any) -> None:
            calls.append(options)
            assert Path(options["model_path"]).read_bytes()[:4] == b"GGUF"

        def reset(self) -> None:
            calls.append("reset")

        def eval(self, tokens: list[int]) -> None:
            calls.append(tokens)

        def sample(self, temp: float) -> int:
            return 8 if temp == 0.0 else -1

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))  # pyright: ignore
    with rival("llama.cpp", lm, folder, model=None, max_tokens=16) as found:
        found.turn(PROMPT, 2)
        found.turn(PROMPT, 0)
    # 16 bits for all but the norms.
    assert found.n_bytes is not None
    assert 16 < 8 * found.n_bytes / lm.config.n_params < 17
    options = calls[0]
    assert (options["n_ctx"], options["n_threads"]) == (16, torch.get_num_threads())
    assert calls[1:] == ["reset", PROMPT, [8], [8], "reset", PROMPT]
    assert not Path(options["model_path"]).exists()


def test_a_file_is_no_model_of_transformers(lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace())  # pyright: ignore
    with (
        pytest.raises(ConfigError, match=r"must be a folder; got '.*config\.json'"),
        rival("transformers", lm, folder, model=folder / "config.json", max_tokens=16),
    ):
        pass


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_program_cannot_load_is_named(name: str, lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def __init__(self, **_: Any) -> None:
            raise ValueError("unknown model type 'stone'")

        from_pretrained = classmethod(lambda cls, *_, **__: cls())

    stand_in = SimpleNamespace(AutoModelForCausalLM=Model, OVModelForCausalLM=Model, Llama=Model)
    monkeypatch.setitem(sys.modules, "optimum", SimpleNamespace(intel=stand_in))  # pyright: ignore
    monkeypatch.setitem(sys.modules, PACKAGES[name][0], stand_in)  # pyright: ignore
    wanted = f"one that {name} can load; got '{folder}' .ValueError: unknown model type 'stone'"
    with pytest.raises(ConfigError, match=wanted), rival(name, lm, folder, model=folder, max_tokens=16):
        pass


def test_errors_in_a_race_are_not_taken_for_errors_of_loading(
    lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = SimpleNamespace(from_pretrained=lambda *_, **__: torch.nn.Linear(2, 2))
    stand_in = SimpleNamespace(AutoModelForCausalLM=loader)
    monkeypatch.setitem(sys.modules, "transformers", stand_in)  # pyright: ignore
    with pytest.raises(KeyError), rival("transformers", lm, folder, model=None, max_tokens=16):
        raise KeyError


@pytest.mark.parametrize("name", ["transformers", "openvino"])
def test_a_module_is_handed_its_own_cache(name: str, lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Model:
        @classmethod
        def from_pretrained(cls, path: Path, **options: Any) -> "Model":
            calls.append((path, options))
            return cls()

        def eval(self) -> "Model":
            return self

        def parameters(self) -> list[torch.Tensor]:
            return [torch.zeros(3)]

        def __call__(self, **given: Any) -> SimpleNamespace:
            ids = given["input_ids"].tolist()
            calls.append((ids, given["attention_mask"].shape[1], given["past_key_values"]))
            logits = torch.zeros(1, len(ids[0]), 300)
            logits[0, -1, 40 + len(calls)] = 1.0
            return SimpleNamespace(logits=logits, past_key_values=len(calls))

    stand_in = SimpleNamespace(AutoModelForCausalLM=Model, OVModelForCausalLM=Model)
    monkeypatch.setitem(sys.modules, "optimum", SimpleNamespace(intel=stand_in))  # pyright: ignore
    monkeypatch.setitem(sys.modules, PACKAGES[name][0], stand_in)  # pyright: ignore
    with rival(name, lm, folder, model=None, max_tokens=16) as found:
        found.turn(PROMPT, 2)
        found.turn(PROMPT, 0)
    assert found.n_bytes == (12 if name == "transformers" else None)
    assert calls[0][0] == folder
    assert calls[1:] == [([PROMPT], 5, None), ([[42]], 6, 2), ([[43]], 7, 3), ([PROMPT], 5, None)]
