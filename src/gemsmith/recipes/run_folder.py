"""What a run folder says about its run: the recipe, and how, when and where it was trained."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gemsmith.errors import CheckpointError
from gemsmith.kernels.native import isa
from gemsmith.recipes.dial import Derived
from gemsmith.recipes.recipe import OPTIONAL, SECTIONS, Recipe, Table, read_toml

RECIPE_FILE, FACTS_FILE, LOG_FILE, MODEL_FOLDER = "recipe.toml", "run.json", "log.jsonl", "model"


def begin(
    out: Path, recipe_path: Path, *, recipe: Recipe, table: Table, derived: Sequence[Derived], facts: Table
) -> None:
    """Write `recipe.toml` and `run.json` into a run folder; a run that goes on adds to the latter.

    Args:
        table: The recipe as it is used, derived numbers included.
        facts: What the caller knows about the machine and how it computes.

    Raises:
        CheckpointError: Training was begun there with another recipe.
    """
    known = read_facts(out)
    if known.get("recipe_sha256", digest(recipe)) != digest(recipe) and any(out.glob("step_*")):
        raise CheckpointError(
            f"recipe must be what the run folder was begun with, {known['recipe_sha256'][:12]!r}; got "
            f"{digest(recipe)[:12]!r} for {str(out)!r}. Choose another folder, or put the old recipe back."
        )
    is_whole = not derived and read_toml(recipe_path) == table
    text = recipe_path.read_text(encoding="utf-8") if is_whole else render(table, derived)
    (out / RECIPE_FILE).write_text(text, encoding="utf-8")
    sessions = [*known.get("sessions", []), {**_session(), **facts}]
    written = {
        "recipe_sha256": digest(recipe),
        "n_params": recipe.model.config(recipe.vocabulary.size).n_params,
        "derived": [asdict(number) for number in derived],
        "sessions": sessions,
    }
    (out / FACTS_FILE).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def read_facts(out: Path) -> dict[str, Any]:
    """Return what `run.json` says; nothing where there is none, or one that was cut off."""
    try:
        return json.loads((out / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def digest(recipe: Recipe) -> str:
    """Return the SHA-256 of everything a recipe says."""
    said = {name: section for name, section in asdict(recipe).items() if section is not None}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def render(table: Table, derived: Sequence[Derived]) -> str:
    """Return a recipe's table as TOML, derived numbers with their sources."""
    sources = {(number.section, number.name): number.source for number in derived}
    lines = []
    for section in (*SECTIONS, *(name for name in OPTIONAL if name in table)):
        lines.append(f"[{section}]")
        for name, value in table[section].items():
            reason = sources.get((section, name))
            lines.append(f"{name} = {_toml(value)}" + (f"  # {reason}" if reason else ""))
        lines.append("")
    for source in table["sources"]:
        lines += ["[[sources]]", *(f"{name} = {_toml(value)}" for name, value in source.items()), ""]
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return repr(value)


def _session() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "gemsmith": version("gemsmith"),
        "commit": _commit(Path(__file__).parent),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": isa(),
    }


def _commit(folder: Path) -> str | None:
    """Return the commit of the source tree this code lies in, "-dirty" where files differ; None elsewhere."""
    try:
        # A package installed into somebody else's working tree is not tracked there.
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    call = ["git", "-C", str(folder), *words]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
