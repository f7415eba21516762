"""How fast models read and write, each taking its turn in every round so that a slow minute hits all of them."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gemsmith.errors import ConfigError
from gemsmith.infer.lm import LM


@dataclass(frozen=True)
class Reading:
    """Seconds one prompt took to be read, its first token included, and seconds per token written after it."""

    prefill_s: float
    decode_s: float | None


# (prompt, how many tokens to write after the first) -> how long it took.
Subject = Callable[[Sequence[int], int], Reading]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        prefill: Lengths of prompts to read.
        contexts: Lengths of prompts to write on from.
        n_new: Tokens written after each.
        n_runs: Rounds that count; one more goes before them.
    """

    prefill: tuple[int, ...]
    contexts: tuple[int, ...]
    n_new: int = 32
    n_runs: int = 5

    def __post_init__(self) -> None:
        for name in ("prefill", "contexts"):
            if any(length < 2 for length in getattr(self, name)):
                raise ConfigError(
                    f"{name} must be prompts of at least 2 tokens; got {min(getattr(self, name))}. Ask for more."
                )
        for name in ("n_new", "n_runs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}. Ask for more.")

    @property
    def lengths(self) -> list[int]:
        """Every prompt length, each once."""
        return sorted({*self.prefill, *self.contexts})

    def fitting(self, max_seq_len: int) -> "Plan":
        """Return this plan, once the model's context has room for it.

        Raises:
            ConfigError: It has not.
        """
        longest = max(self.lengths) + self.n_new + 1
        if longest > max_seq_len:
            raise ConfigError(
                f"prompt and new tokens must fit the model's context of {max_seq_len}; got {longest}. Ask for less."
            )
        return self


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one subject in one phase, run by run.

    Attributes:
        phase: "prefill" or "decode".
        n_tokens: Length of the prompt.
    """

    subject: str
    phase: str
    n_tokens: int
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.rates)


def measure(subjects: Mapping[str, Subject], plan: Plan, *, vocab_size: int) -> list[Speed]:
    """Run a plan: a round of warming up, then the rounds that count, subject by subject.

    Args:
        vocab_size: Ids of prompts are drawn below it, the same for all.
    """
    found: dict[tuple[str, str, int], Speed] = {}
    generator = torch.Generator().manual_seed(0)
    longest = torch.randint(0, vocab_size, (max(plan.lengths),), generator=generator).tolist()
    for number in range(plan.n_runs + 1):
        for length in plan.lengths:
            for name, subject in subjects.items():
                n_new = plan.n_new if length in plan.contexts else 0
                reading = subject(longest[:length], n_new)
                if number:
                    _note(found, name, length, reading, is_prefill=length in plan.prefill)
    return sorted(found.values(), key=lambda speed: (speed.phase != "prefill", speed.n_tokens))


def _note(
    found: dict[tuple[str, str, int], Speed], name: str, length: int, reading: Reading, *, is_prefill: bool
) -> None:
    if is_prefill:
        speed = found.setdefault((name, "prefill", length), Speed(name, "prefill", length))
        speed.rates.append(length / reading.prefill_s)
    if reading.decode_s is not None:
        speed = found.setdefault((name, "decode", length), Speed(name, "decode", length))
        speed.rates.append(1 / reading.decode_s)


def gemsmith_subject(lm: LM) -> Subject:
    """Return our own turn: greedy text of full length, through the same call a person makes."""
    endless = copy.copy(lm)
    endless.stop_ids = frozenset()

    def run(prompt: Sequence[int], n_new: int) -> Reading:
        completion = endless.generate(list(prompt), temperature=0.0, max_new_tokens=n_new + 1)
        assert completion.ttft_s is not None
        return Reading(completion.ttft_s, None if n_new == 0 else (completion.total_s - completion.ttft_s) / n_new)

    return run


def timed(read: Callable[[Sequence[int]], int], write: Callable[[int], int]) -> Subject:
    """Return the turn of a program that is called token by token.

    Args:
        read: Prompt -> the best next token, everything before it forgotten.
        write: Token -> the best one after it.
    """

    def run(prompt: Sequence[int], n_new: int) -> Reading:
        start = time.perf_counter()
        token = read(prompt)
        first = time.perf_counter()
        for _ in range(n_new):
            token = write(token)
        total = time.perf_counter()
        return Reading(first - start, None if n_new == 0 else (total - first) / n_new)

    return run
