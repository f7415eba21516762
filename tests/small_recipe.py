"""The smallest recipe with everything a run can have: two forms, epochs that turn, a last part."""

import json
from pathlib import Path

RECIPE = """
[model]
d_model = 16
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 8
d_ff = 24
window = 8
max_seq_len = 64

[vocabulary]
size = 450
sample_megabytes = 1

[optimizer]
matrix_rate = 0.01
other_rate = 0.01
warmup_steps = 2
decay_share = 0.5

[batch]
tokens = 256
row = 64
late_row = 32
late_share = 0.3
seed = 3

[[sources]]
name = "stories"
path = "stories.jsonl"
license = "CC0-1.0"
share = 3
held_out = 10
max_epochs = 1000

[[sources]]
name = "chats"
path = "chats.jsonl"
form = "instruction"
license = "CC0-1.0"
share = 1
max_epochs = 1000
"""


def write_small_recipe(place: Path) -> Path:
    """Write texts and `recipe.toml` into a folder; return the recipe's path."""
    animals = ("fox", "hare", "owl", "bear", "cat", "dog", "goat", "crow")
    stories = [
        f"Once a {a} met a {b}. They ran over hill {i} to the river." for i, a in enumerate(animals) for b in animals
    ]
    (place / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    chats = [{"instruction": f"A {a}?", "input": "", "output": "An animal."} for a in animals]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (place / "recipe.toml").write_text(RECIPE)
    return place / "recipe.toml"
