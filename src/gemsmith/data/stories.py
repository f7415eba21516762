"""Requests for stories, made from stories: what a person could have asked to be told this one."""

import hashlib
import re

Turns = tuple[tuple[str, str], ...]

_REQUESTS = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Write a short story about {}.",
    "Can you tell me a story about {}?",
    "Please tell me a story about {}.",
    "I would like to hear a story about {}.",
    "Make up a story about {}.",
    "Write a story for children about {}.",
)
# "there was a little girl named Lily", "a fast driver named Tim", "there lived a big bear"
_NAMED = re.compile(r"\b(an? (?:[a-z]+ ){1,3})named ([A-Z][a-z]+)")
_PRESENTED = re.compile(r"\bthere (?:was|lived|were) (an? (?:[a-z]+ ){0,2}[a-z]+)(?= who|[.,])")
_CHARACTER = re.compile(r"Main Character: (.+)")


def story_request(story: str) -> Turns:
    """Return a request for a story and the story, or nothing when its beginning names no one."""
    start = story[:240]
    named = _NAMED.search(start)
    if named is not None:
        return _turns(f"{named[1]}named {named[2]}" if _number(story) % 2 else named[1].strip(), story)
    presented = _PRESENTED.search(start)
    return () if presented is None else _turns(presented[1], story)


def fable_request(prompt: str, fable: str) -> Turns:
    """Return a request for the main character of a fable's detailed prompt, and the fable."""
    character = _CHARACTER.search(prompt)
    if character is None:
        return ()
    name = re.sub(r"^a (?=[aeiou])", "an ", character[1].strip())
    return _turns(name, fable)


def _turns(about: str, story: str) -> Turns:
    request = _REQUESTS[_number(story) // 2 % len(_REQUESTS)].format(about)
    return (("user", request), ("model", story.strip()))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
