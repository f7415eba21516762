"""How a row of a file becomes a text or a conversation."""

import re
from collections.abc import Callable, Mapping

from gemsmith.data.stories import fable_request, story_request

Turns = tuple[tuple[str, str], ...]
Parts = tuple[str, Turns]


def _plain(row: Mapping[str, object]) -> Parts:
    return str(row["text"]).strip(), ()


def _book(row: Mapping[str, object]) -> Parts:
    """Join the lines of a paragraph; books arrive wrapped to a fixed width."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", str(row["text"]).replace("\r", "")).strip(), ()


def _titled(row: Mapping[str, object]) -> Parts:
    return f"{row['title']}\n\n{str(row['text']).strip()}", ()


def _instruction(row: Mapping[str, object]) -> Parts:
    """Read an instruction, perhaps some material for it, and the answer."""
    material = str(row.get("input") or row.get("context") or "").strip()
    question = str(row["instruction"]).strip() + (f"\n\n{material}" if material else "")
    return "", (("user", question), ("model", str(row.get("output") or row["response"]).strip()))


def _question(row: Mapping[str, object]) -> Parts:
    question = f"{str(row['context']).strip()}\n\n{row['question']}"
    return "", (("user", question), ("model", str(row["answer"]).strip()))


def _dialogue(row: Mapping[str, object]) -> Parts:
    roles = {"USER": "user", "SYSTEM": "model"}
    turns: list[dict[str, str]] = row["turns"]  # pyright: ignore[reportAssignmentType]
    return "", tuple((roles[turn["role"]], turn["text"].strip()) for turn in turns)


def _story_request(row: Mapping[str, object]) -> Parts:
    return "", story_request(str(row["text"]))


def _fable_request(row: Mapping[str, object]) -> Parts:
    return "", fable_request(str(row["prompt"]), str(row["text"]))


FORMS: dict[str, Callable[[Mapping[str, object]], Parts]] = {
    "text": _plain,
    "book": _book,
    "titled": _titled,
    "instruction": _instruction,
    "question": _question,
    "dialogue": _dialogue,
    "story_request": _story_request,
    "fable_request": _fable_request,
}

# Forms that give texts; the others give conversations.
TEXT_FORMS = frozenset(("text", "book", "titled"))
