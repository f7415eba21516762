"""The folder a trained model is given away in."""

from dataclasses import asdict
from pathlib import Path

import torch

from gemsmith.kernels.quantized import SCALE_DTYPE
from gemsmith.model.quantized import quantize_network
from gemsmith.model.transformer import Transformer
from gemsmith.recipes.gradients import schemes_of
from gemsmith.recipes.recipe import Recipe
from gemsmith.recipes.run_folder import digest
from gemsmith.tokenizer import Tokenizer
from gemsmith.train.loop import TrainState
from gemsmith.weights.folder import save_folder

# Small models wander at full temperature and repeat themselves without any.
_SUGGESTED = {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


def export(recipe: Recipe, state: TrainState, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the model folder, in the bits it was trained for or bfloat16, with where it came from in its manifest."""
    network = Transformer(recipe.model.config(tokenizer.vocab_size))
    network.load_state_dict({name: weight.detach() for name, weight in state.weights.items()})
    schemes = schemes_of(recipe.quantization, network.config)
    quantize_network(network, lambda name, _: schemes.get(name), scale_dtype=SCALE_DTYPE)
    lineage = {
        **_origin(recipe),
        "recipe_sha256": digest(recipe),
        "sources": {
            source.name: {key: getattr(source, key) for key in ("license", "repository", "commit", "ships")}
            for source in recipe.sources
        },
        **{name: getattr(state, name) for name in ("step", "n_tokens", "seconds", "late_step")},
    }
    return save_folder(
        folder, network, tokenizer=tokenizer, dtype=torch.bfloat16, generation=_SUGGESTED, lineage=lineage
    )


def _origin(recipe: Recipe) -> dict[str, object]:
    """Return what the optional sections of a recipe leave in a model's lineage."""
    origin: dict[str, object] = {}
    if recipe.start is not None:
        origin["start"] = recipe.start.model
    if recipe.quantization is not None:
        origin["quantized"] = {"method": "training", **asdict(recipe.quantization)}
    return origin
