"""The folder a trained model is given away in."""

from pathlib import Path

import torch

from gemsmith.model.transformer import Transformer
from gemsmith.recipes.recipe import Recipe
from gemsmith.recipes.run_folder import digest
from gemsmith.tokenizer import Tokenizer
from gemsmith.train.loop import TrainState
from gemsmith.weights.folder import save_folder

# Small models wander at full temperature and repeat themselves without any.
_SUGGESTED = {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


def export(recipe: Recipe, state: TrainState, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the model folder, in bfloat16, with where it came from in its manifest."""
    network = Transformer(recipe.model.config(tokenizer.vocab_size), dtype=torch.bfloat16)
    network.load_state_dict({name: weight.detach().to(torch.bfloat16) for name, weight in state.weights.items()})
    lineage = {
        "recipe_sha256": digest(recipe),
        "sources": {
            source.name: {key: getattr(source, key) for key in ("license", "repository", "commit", "ships")}
            for source in recipe.sources
        },
        **{name: getattr(state, name) for name in ("step", "n_tokens", "seconds", "late_step")},
    }
    return save_folder(folder, network, tokenizer=tokenizer, generation=_SUGGESTED, lineage=lineage)
