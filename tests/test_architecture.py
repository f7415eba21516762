"""The layout keeps its promise: a module imports only what stands above it, and growth is seen."""

import ast
from pathlib import Path

import pytest

import gemsmith

ROOT = Path(gemsmith.__file__).parent

# The way of the data, top to bottom. A stage may import itself and what stands before it.
ORDER = (
    "errors", "config", "vocabulary", "tokenizer", "chat", "kernels", "model", "weights", "infer", "data", "train",
    "recipes", "evaluate", "safety", "serve", "cli",
)  # fmt: skip
# Stand beside the order: the lazy front door, `python -m gemsmith`, and weights without code.
BESIDE = {"__init__", "__main__", "pebble"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py"))


def stage(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported_stages(tree: ast.AST) -> set[str]:
    """Return the stages of gemsmith a module imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("gemsmith.")}


def violations(path: Path, source: str) -> list[str]:
    own = stage(path.parts)
    if own in BESIDE or path.name == "__init__.py":
        return []
    allowed = set(ORDER[: ORDER.index(own) + 1]) | {"pebble"}
    return [f"{path} imports gemsmith.{name}" for name in sorted(imported_stages(ast.parse(source)) - allowed)]


def test_every_module_imports_only_what_stands_above_it() -> None:
    found = [line for path in modules() for line in violations(path.relative_to(ROOT), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/attention.py", "from gemsmith.infer.lm import LM"),
        ("config.py", "import gemsmith.tokenizer"),
        ("weights/wire.py", "def f():\n    from gemsmith.cli import app"),
        ("kernels/fast.py", "from gemsmith import model"),
    ],
)
def test_an_import_against_the_order_is_seen(path: str, source: str) -> None:
    assert violations(Path(path), source)


def test_every_module_has_a_place_in_the_order() -> None:
    stages = {stage(path.relative_to(ROOT).parts) for path in modules()}
    assert stages - set(ORDER) - BESIDE == set()


def test_folders_are_one_level_deep() -> None:
    deep = [path for path in modules() if len(path.relative_to(ROOT).parts) > 2]
    assert deep == []


def test_model_never_sees_a_tokenizer_or_a_file() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "model").glob("*.py")]
    assert {name for tree in trees for name in imported_stages(tree)} <= {"errors", "config", "kernels", "model"}


# What recipes share. Every other file of the folder is a recipe of its own.
PARTS = {
    "__init__",
    "dial",
    "export",
    "options",
    "plot",
    "recipe",
    "run_folder",
    "balance",
    "budget",
    "gptq",
    "gradients",
    "quantize",
    "schemes",
    "start",
}
# The proof of a recipe runs that recipe.
PROVED = {"prove": {"gemsmith.recipes.pretrain"}}


def test_recipes_never_see_each_other() -> None:
    paths = sorted((ROOT / "recipes").glob("*.py"))
    recipes = {f"gemsmith.recipes.{path.stem}" for path in paths} - {f"gemsmith.recipes.{part}" for part in PARTS}
    for path in paths:
        found = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not found & (recipes - PROVED.get(path.stem, set())), path


def n_lines(node: ast.AST) -> int:
    return (node.end_lineno or 0) - node.lineno + 1  # pyright: ignore[reportAttributeAccessIssue]


def largest(kinds: tuple[type, ...]) -> tuple[int, str]:
    """Return the length and place of the longest definition of these kinds."""
    found = [
        (n_lines(node), f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
    ]
    return max(found, default=(0, ""))


def test_nothing_has_grown_out_of_hand(capsys: pytest.CaptureFixture[str]) -> None:
    file = max((len(path.read_text().splitlines()), str(path.relative_to(ROOT))) for path in modules())
    found = {
        "file": file,
        "function": largest((ast.FunctionDef, ast.AsyncFunctionDef)),
        "class": largest((ast.ClassDef,)),
    }
    with capsys.disabled():
        print("\nlargest", *(f"{what}: {n} lines, {place}" for what, (n, place) in found.items()), sep="\n  ")
    assert found["file"][0] <= 400
    assert found["function"][0] <= 60
    assert found["class"][0] <= 220
