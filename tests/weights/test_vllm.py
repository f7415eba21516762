"""Folders in few bits, read by vLLM: GEMSMITH_PEER_VLLM names the Python of an environment that has it."""

import json
import os
import subprocess
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gemsmith.kernels.quantized import dequantize, quantize
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.schemes import parse_scheme
from gemsmith.weights.quantized import put
from gemsmith.weights.save import save_folder
from tiny import tiny_config

pytestmark = pytest.mark.peers

SCRIPT = Path(__file__).parent / "vllm_scores.py"
IDS = list(range(5, 25))  # longer than the window


@dataclass(frozen=True)
class Case:
    """A model in few bits.

    Attributes:
        schemes: End of a module's name to its scheme in words, the first that fits; the others stay dense.
        is_plain: Whether it is multiplied by the script's own product, and in float32.
    """

    schemes: Mapping[str, str]
    family: str = "gemma2"
    is_plain: bool = True


READ = {
    "int8": Case({"proj": "int8"}),
    "int8-g32 of Gemma 1": Case({"proj": "int8-g32"}, "gemma"),
    "int4-g32 of Gemma 3": Case({"proj": "int4-g32"}, "gemma3"),
    "int4-g64-asym": Case({"proj": "int4-g64-asym"}),
    "mixed": Case({"layers.1.mlp.down_proj": "int8", "down_proj": "int4-g128", "o_proj": "int8-g64-asym"}),
}
MULTIPLIED = {
    "int4-g32 by its own product": Case({"proj": "int4-g32"}, is_plain=False),
    "int4-g64-asym by its own product": Case({"proj": "int4-g64-asym"}, is_plain=False),
}
REFUSED = {
    "int8 embedding": Case({"embed_tokens": "int8"}),
    "int4 embedding": Case({"embed_tokens": "int4"}),
}
CASES = READ | MULTIPLIED | REFUSED


@dataclass(frozen=True)
class Answer:
    """What vLLM said of a folder, and a dense network of the same weights."""

    found: dict[str, Any]
    dense: Transformer

    @property
    def logprobs(self) -> torch.Tensor:
        assert "refusal" not in self.found, self.found["refusal"]
        return torch.tensor(self.found["logprobs"])

    @torch.no_grad()
    def wanted(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        logits = deepcopy(self.dense).to(dtype)(torch.tensor([IDS]))
        return logits[0, :-1].float().log_softmax(-1)


def wide_network(family: str) -> Transformer:
    """Return a random network of sizes that groups of 128 and vLLM's attention can have."""
    config = tiny_config(family)
    scale = 32**-0.5 if family == "gemma" else config.layers[0].attn_scale
    layers = tuple(replace(layer, head_dim=32, d_ff=256, attn_scale=scale) for layer in config.layers)
    network = Transformer(replace(config, d_model=128, layers=layers), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        parameter.data.normal_(0.0, 0.3 if "norm" in name else parameter.shape[-1] ** -0.5, generator=generator)
    return network.eval()


def write(case: Case, folder: Path) -> Transformer:
    """Save a model; return it with the weights that its few bits stand for."""
    network, dense = wide_network(case.family), wide_network(case.family)
    for name, module in list(network.named_modules()):
        word = next((word for end, word in case.schemes.items() if name.endswith(end)), None)
        if word is None:
            continue
        scheme = parse_scheme(word)
        assert scheme is not None
        assert isinstance(module, Linear) or name == "embed_tokens"
        q = quantize(network.get_parameter(f"{name}.weight"), scheme, scale_dtype=torch.bfloat16)
        put(network, name, q)
        dense.get_parameter(f"{name}.weight").data = dequantize(q)
    save_folder(folder, network)
    return dense


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """All cases, by one process: vLLM's imports take longest."""
    python = os.environ.get("GEMSMITH_PEER_VLLM")
    if python is None:
        pytest.skip("GEMSMITH_PEER_VLLM must name the Python of an environment that has vLLM")
    place = tmp_path_factory.mktemp("vllm")
    networks = {name: write(case, place / name) for name, case in CASES.items()}
    runs = [{"folder": str(place / name), "ids": IDS, "is_plain": case.is_plain} for name, case in CASES.items()]
    (place / "runs.json").write_text(json.dumps(runs))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, str(SCRIPT), str(place / "runs.json"), str(place / "found.json")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads((place / "found.json").read_text())
    return {name: Answer(one, networks[name]) for name, one in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("name", READ)
def test_vllm_reads_the_same_weights(name: str, answers: dict[str, Answer]) -> None:
    torch.testing.assert_close(answers[name].logprobs, answers[name].wanted(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MULTIPLIED)
def test_vllm_multiplies_four_bits_as_well_as_bfloat16_can(name: str, answers: dict[str, Answer]) -> None:
    wanted = answers[name].wanted()
    ours = (answers[name].wanted(torch.bfloat16) - wanted).square().mean().sqrt()
    theirs = (answers[name].logprobs - wanted).square().mean().sqrt()
    assert theirs < 2 * ours


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8 embedding", "Assertion failed"),
        ("int4 embedding", "no module or parameter named 'model.embed_tokens.weight_packed'"),
    ],
)
def test_vllm_refuses_embeddings_in_few_bits(name: str, message: str, answers: dict[str, Answer]) -> None:
    """It has no such embedding that is the output head too; once it has, what we tell of it must change."""
    assert message in answers[name].found.get("refusal", "it was read")
