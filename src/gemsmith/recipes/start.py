"""The weights a run starts from: fresh ones, or those of a model there is."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gemsmith.config import ModelConfig
from gemsmith.data.dataset import Dataset
from gemsmith.errors import ConfigError, DataError
from gemsmith.recipes.recipe import StartSpec
from gemsmith.tokenizer import MODEL_FILE
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import load_network, read_config, read_schemes
from gemsmith.weights.manifest import sha256_of


@dataclass(frozen=True)
class Start:
    """A model to start from.

    Attributes:
        sha256: Of its weights and configuration together.
    """

    folder: Path
    sha256: str


def find_dense(model: str, *, name: str) -> Path:
    """Return the folder of a model in full precision.

    Args:
        name: What the model is called in the error.

    Raises:
        ModelNotFoundError: Nothing of that name is on this machine.
        ConfigError: It is a file, or in few bits already.
    """
    folder = find_model(model)
    if not folder.is_dir() or read_schemes(folder):
        kind = "a model in few bits" if folder.is_dir() else "a file"
        raise ConfigError(
            f"{name} must be a folder of dense weights; got {model!r}, {kind}. Take the one it was made from, or make "
            "one: gemsmith convert MODEL FOLDER."
        )
    return folder


def find_start(spec: StartSpec, config: ModelConfig) -> Start:
    """Return the model a recipe starts from, once its network is the recipe's.

    Raises:
        ModelNotFoundError: Nothing of that name is on this machine.
        ConfigError: It is no folder of dense weights, or of another shape than the recipe's model.
    """
    folder = find_dense(spec.model, name="model of [start]")
    _check_shape(spec, read_config(folder), config)
    files = sorted(folder.glob("*.safetensors"))
    return Start(folder, _together([sha256_of(file) for file in (*files, folder / "config.json")]))


def start_weights(start: Start) -> dict[str, Tensor]:
    """Return the float32 parameters of a model by name, ready to be trained."""
    network = load_network(start.folder, dtype=torch.float32).network
    return {name: parameter.detach().clone().requires_grad_() for name, parameter in network.named_parameters()}


def check_vocabulary(start: Start, dataset: Dataset) -> None:
    """Refuse a dataset whose pieces are not the model's.

    Raises:
        DataError: The hashes of the vocabularies differ.
    """
    wanted, found = sha256_of(start.folder / MODEL_FILE), dataset.index.vocabulary.sha256
    if wanted != found:
        raise DataError(
            f"vocabulary must be that of the model in [start], {wanted[:12]!r}; got {found[:12]!r} in the dataset. "
            f"Build the dataset with the vocabulary in {str(start.folder)!r}."
        )


def _check_shape(spec: StartSpec, found: ModelConfig, wanted: ModelConfig) -> None:
    for name in wanted.__dataclass_fields__:
        if getattr(found, name) != getattr(wanted, name):
            raise ConfigError(
                f"model of [start] must have the shape of [model]; got another {name} in {spec.model!r}: "
                f"{getattr(found, name)!r:.200} instead of {getattr(wanted, name)!r:.200}. Correct the recipe."
            )


def _together(hashes: list[str]) -> str:
    """Return one hash for several."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
