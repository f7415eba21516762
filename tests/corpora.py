"""Small made-up corpora for the tests: every kind of file, with repetitions and held-out texts that leak."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemsmith.data.sources import Source

WORDS = [f"{a}{b}" for a in ("ba", "do", "fi", "ku", "le", "mo", "ra", "su") for b in ("l", "n", "rt", "st", "p", "x")]


def sentences(seed: int, n_words: int = 60) -> str:
    """Return words without sense; equal seeds, equal words."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n_words)).capitalize() + "."


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_corpora(folder: Path) -> list[Source]:
    """Write four sources and return them: stories, chats, a folder of code, and a Markdown file."""
    stories = [sentences(seed) for seed in range(120)]
    rows = [{"text": text} for text in stories]
    rows.insert(50, {"text": stories[3].upper().replace(" ", "  ")})  # line 51 repeats line 4
    write_lines(folder / "stories.jsonl", rows)
    chats = [
        {"instruction": f"Say {WORDS[i % 48]} {i}.", "input": "", "output": sentences(500 + i, 15)} for i in range(30)
    ]
    write_lines(folder / "chats.jsonl", [*chats, chats[0]])
    code = folder / "code"
    for number in range(12):
        path = code / f"part{number % 3}" / f"f{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def f{number}():\n    return {number * 37}\n")
    (code / ".hidden.py").write_text("secret = 1\n")
    (code / "notes.txt").write_text("not code\n")
    (folder / "guide.md").write_text(f"# Guide\n\n{sentences(9000)}\n")
    return [
        Source("stories", "stories.jsonl", "CC0-1.0", 3.0, repository="a/stories", commit="0123abcd", held_out=10.0),
        Source("chats", "chats.jsonl", "CC0-1.0", 1.0, form="instruction", ships=False),
        Source("code", "code", "MIT", 1.0, include=("**/*.py",)),
        Source("guide", "guide.md", "MIT", 0.5),
    ]
