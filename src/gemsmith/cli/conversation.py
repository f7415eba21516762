"""A conversation on the way: its turns, and the file they are kept in (JSON lines, one turn each)."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from gemsmith.chat import ROLES, Turn
from gemsmith.cli.source import decode_utf8, read_bytes
from gemsmith.errors import ChatError, StorageError


@dataclass
class Conversation:
    """The turns so far; a system text, where there is one, stands before them."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def all_turns(self) -> list[Turn]:
        """Return what the model is shown: the system text and every turn."""
        return ([Turn("system", self.system)] if self.system else []) + self.turns

    def save(self, path: Path) -> None:
        """Write the conversation; what the file held before stays until the new one is whole.

        Raises:
            StorageError: The file cannot be written.
        """
        lines = [json.dumps({"role": turn.role, "content": turn.text}, ensure_ascii=False) for turn in self.all_turns()]
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise StorageError(
                f"conversation must go into a writable file; got {str(path)!r}: {error.strerror}. Choose another place."
            ) from error

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """Read a conversation back.

        Raises:
            PromptError: The file cannot be read or is not UTF-8.
            ChatError: A line is not a turn; its number is named.
        """
        text = decode_utf8(read_bytes(path), source=repr(str(path)))
        turns = [
            _turn(line, f"line {number} of {path.name}") for number, line in enumerate(text.split("\n"), 1) if line
        ]
        system = [turn for turn in turns if turn.role == "system"]
        if len(system) > 1 or (system and turns[0] is not system[0]):
            raise ChatError(
                f"system text must stand once, first; got {len(system)} in {path.name}. Join them in the first line."
            )
        return cls(system[0].text if system else "", turns[len(system) :])


def _turn(line: str, place: str) -> Turn:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str) or fields.get("role") not in ROLES:
        raise ChatError(
            f"turn must be an object with a role of {', '.join(ROLES)} and a content; got {line[:60]!r} in {place}. "
            "Files written by /save look like that."
        )
    return Turn(fields["role"], fields["content"])
