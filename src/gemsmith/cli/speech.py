"""A completion shown while it is written, and what is worth saying about it afterwards."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemsmith.chat import Turn
    from gemsmith.infer.completion import Completion
    from gemsmith.infer.lm import LM
    from gemsmith.infer.settings import Options

ENDINGS = {"stop": "it ended by itself", "length": "cut at the length asked for", "cancelled": "stopped"}


def speak(lm: "LM", prompt: "str | Sequence[Turn]", options: "Options", *, show: Callable[[str], None]) -> "Completion":
    """Write a completion piece by piece; Ctrl-C ends it, and what came before counts.

    Args:
        show: Called with each piece as it becomes certain.
    """
    stream = lm.stream(prompt, **options)
    try:
        for piece in stream:
            show(piece)
    except KeyboardInterrupt:
        stream.close()
        for piece in stream:
            show(piece)
    return stream.completion


def summary(completion: "Completion") -> str:
    """Return one line: how many tokens, how fast, what repeats them, and why they ended."""
    speed = "" if completion.tokens_per_s is None else f", {completion.tokens_per_s:.0f} tokens/s"
    return f"[{completion.n_tokens} tokens{speed}, seed {completion.seed}, {ENDINGS[completion.finish_reason]}]"
