"""The text of a completion while it is being written: whole code points, and stop strings kept back."""

from collections.abc import Sequence

from gemsmith.tokenizer import StreamDecoder


class TextWriter:
    """Turns token ids into text that may be shown at once.

    Text that could still become a stop string waits until it cannot. The stop string that is
    complete first ends the text, which then holds neither it nor anything after it; so the text
    does not depend on how the ids cut it into pieces.

    Attributes:
        is_stopped: Whether a stop string has been found.
    """

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop = decoder, tuple(stop)
        self._waiting = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Return the text that became certain with one more token."""
        return self._release(self._decoder.push(token_id))

    def finish(self) -> str:
        """Return what was waiting, when no token follows."""
        text = self._release(self._decoder.finish()) + self._waiting
        self._waiting = ""
        return text

    def _release(self, piece: str) -> str:
        if not self._stop or self.is_stopped:
            return "" if self.is_stopped else piece
        text = self._waiting + piece
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if found:
            self.is_stopped, self._waiting = True, ""
            return text[: min(found)[1]]
        n_held = max(_n_begun(text, stop) for stop in self._stop)
        self._waiting = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _n_begun(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
