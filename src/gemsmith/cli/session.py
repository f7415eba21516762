"""A chat in progress: the model, its settings and the conversation; one method per command."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemsmith.chat import Turn
from gemsmith.cli.console import UsageError, say
from gemsmith.cli.conversation import Conversation
from gemsmith.cli.flags import EndFlags
from gemsmith.cli.speech import speak

if TYPE_CHECKING:
    from gemsmith.infer.completion import Completion
    from gemsmith.infer.lm import LM
    from gemsmith.infer.sample import Sampling
    from gemsmith.infer.settings import Options


@dataclass
class Session:
    """What /set, /system, /save, /load and /reset work on."""

    lm: "LM"
    sampling: "Sampling"
    end: EndFlags
    conversation: Conversation

    def answer(self, text: str, *, show: Callable[[str], None]) -> "Completion":
        """Answer a user turn; an answer stopped on the way is kept as far as it came.

        A turn the model refuses, or whose answer is empty, leaves no trace.
        """
        asked = Turn("user", text)
        prompt = [*self.conversation.all_turns(), asked]
        options: Options = {
            "max_new_tokens": self.end.max_new_tokens,
            "stop": self.end.stop,
            "sampling": self.sampling,
        }
        completion = speak(self.lm, prompt, options, show=show)
        if completion.text.strip():
            self.conversation.turns += [asked, Turn("model", completion.text.strip())]
        return completion

    def set_system(self, text: str) -> None:
        """Change what the model is told before the first turn."""
        self.conversation.system = text
        say(f"system: {text or 'none'}")

    def set(self, words: str) -> None:
        """Change a setting, or list them all.

        Raises:
            UsageError: There is no such setting, or the value is no number.
            SamplingError: The value is out of range.
        """
        name, _, value = words.partition(" ")
        if name:
            self._change(name, value.strip())
        say("\n".join(f"{name} {value}" for name, value in self._settings().items()))

    def save(self, path: Path) -> None:
        """Keep the conversation in a file."""
        self.conversation.save(path)
        say(f"saved {len(self.conversation.turns)} turns in {path}")

    def load(self, path: Path) -> None:
        """Go on with the conversation of a file."""
        self.conversation = Conversation.load(path)
        say(f"loaded {len(self.conversation.turns)} turns from {path}")

    def reset(self) -> None:
        """Forget the turns; the system text and the settings stay."""
        self.conversation.turns.clear()
        say("begun anew")

    def _settings(self) -> dict[str, object]:
        """Return every setting that is one number."""
        numbers = {field.name: getattr(self.sampling, field.name) for field in fields(self.sampling)}
        return {"max_new_tokens": self.end.max_new_tokens, **{n: v for n, v in numbers.items() if n != "logit_bias"}}

    def _change(self, name: str, text: str) -> None:
        settings = self._settings()
        if name not in settings:
            raise UsageError(f"setting must be one of {', '.join(settings)}; got {name!r}. Choose one of them.")
        try:
            value = None if text == "none" else int(text) if is_whole(name) else float(text)
        except ValueError as error:
            raise UsageError(f"{name} must be a number; got {text!r}. Write /set temperature 0.7.") from error
        if name == "max_new_tokens":
            if value is None or value < 1:
                raise UsageError(f"max_new_tokens must be at least 1; got {value!r}. Give the answer room.")
            self.end = replace(self.end, max_new_tokens=int(value))
        else:
            self.sampling = replace(self.sampling, **{name: value})


def is_whole(setting: str) -> bool:
    """Tell settings that count things from those that measure."""
    return setting in ("max_new_tokens", "top_k", "seed")
