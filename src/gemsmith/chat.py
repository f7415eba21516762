"""A conversation as token ids: the only place that knows a chat template.

After one `<bos>`, each turn is `<start_of_turn>`, the role, a newline, the text, `<end_of_turn>`, a
newline. The markers are put in by id and all text is encoded as plain text, so nothing that a user,
a tool or a document writes can begin or end a turn.

Source: the chat templates published with the instruction-tuned Gemma 1, 2 and 3 models. They differ in
one point: those of Gemma 1 and 2 refuse a system turn, that of Gemma 3 writes its text in front of the
first user turn, as we do for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gemsmith.config import ModelConfig
from gemsmith.errors import ChatError
from gemsmith.tokenizer import Tokenizer

ROLES = ("user", "model", "system")
FAMILIES = ("gemma", "gemma2", "gemma3", "vaultgemma")
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
_BREAK = "\n\n"  # between system text and user text, and between merged turns


@dataclass(frozen=True)
class Turn:
    """What one speaker says.

    Attributes:
        role: "user", "model" or "system".
        content: The text; a tuple of parts (text, images, audio) is for models that read them.
    """

    role: str
    content: str | tuple[object, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            advice = "Call it 'model' here." if self.role == "assistant" else "Name one of the three."
            raise ChatError(f"role must be user, model or system; got {self.role!r}. {advice}")

    @property
    def text(self) -> str:
        """The content of a turn that is text only."""
        if not isinstance(self.content, str):
            raise ChatError(
                f"content must be text; got {type(self.content).__name__} {self.content!r:.60} in a {self.role} turn. "
                "This model reads no images or audio; pass the text alone."
            )
        return self.content


@dataclass(frozen=True)
class ChatIds:
    """A compiled conversation; `loss_mask` is True where the id is one the model should learn to write."""

    token_ids: list[int]
    loss_mask: list[bool]


def compile_chat(
    turns: Sequence[Turn], tokenizer: Tokenizer, *, family: str, system: str = "fold", open_answer: bool = False
) -> ChatIds:
    """Return the ids of a conversation, beginning with exactly one BOS, and its loss mask.

    Text is trimmed as the templates trim it; turns of one role in a row become one. The loss counts
    a model turn's text and the `<end_of_turn>` that closes it, without which a trained model never
    stops; not the newline behind, which is never sampled because generation stops before it.

    Args:
        system: "fold" writes system text in front of the first user turn, "error" refuses it.
        open_answer: End with the start of a model turn, for the model to go on.

    Raises:
        ChatError: A conversation the template cannot express, or a tokenizer without turn markers.
    """
    if family not in FAMILIES:
        raise ChatError(f"family must be one of {', '.join(FAMILIES)}; got {family!r}. Choose the model's.")
    merged = _fold_system(turns, system)
    if open_answer and merged[-1][0] != "user":
        raise ChatError(
            f"last turn must be the user's when an answer is to follow; got a {merged[-1][0]} turn. "
            "Add a user turn or ask for no answer."
        )
    start, end = _marker(tokenizer, START_OF_TURN), _marker(tokenizer, END_OF_TURN)
    model_head = [start, *tokenizer.encode("model\n")]
    newline = tokenizer.encode("\n")
    token_ids, loss_mask = [tokenizer.bos_id], [False]
    for role, text in merged:
        # The text of a model turn is trimmed, so no piece reaches from its head into it.
        head = model_head if role == "model" else [start, *tokenizer.encode(f"user\n{text}")]
        answer = [*tokenizer.encode(text), end] if role == "model" else []
        tail = newline if role == "model" else [end, *newline]
        token_ids += head + answer + tail
        loss_mask += [False] * len(head) + [True] * len(answer) + [False] * len(tail)
    if open_answer:
        token_ids += model_head
        loss_mask += [False] * len(model_head)
    return ChatIds(token_ids, loss_mask)


def stop_ids(tokenizer: Tokenizer, config: ModelConfig) -> frozenset[int]:
    """Return the ids that end an answer: every eos, and the end of a turn where the vocabulary has one."""
    end = tokenizer.id_of(END_OF_TURN)
    return frozenset((tokenizer.eos_id, *config.eos_ids, *(() if end is None else (end,))))


def _marker(tokenizer: Tokenizer, piece: str) -> int:
    token_id = tokenizer.id_of(piece)
    if token_id is None or token_id not in tokenizer.control_ids:
        raise ChatError(
            f"tokenizer must have {piece!r} among its control pieces to hold a conversation; got {token_id!r} as its "
            "id. Use the tokenizer of a Gemma 1, 2 or 3 model."
        )
    return token_id


def _fold_system(turns: Sequence[Turn], system: str) -> list[tuple[str, str]]:
    """Return (role, text) of the turns as the template writes them: system text gone into the first user turn."""
    if system not in ("fold", "error"):
        raise ChatError(f"system must be 'fold' or 'error'; got {system!r}. Choose one of them.")
    merged = _merge(turns)
    if merged and merged[0][0] == "system":
        if system == "error":
            raise ChatError(
                f"system turns must not be given; got {merged[0][1]!r:.60}. Use system='fold' to allow them."
            )
        prefix = merged.pop(0)[1]
        if merged and merged[0][0] == "user" and prefix.strip():
            merged[0] = ("user", prefix + _BREAK + merged[0][1])
    if not merged or merged[0][0] != "user":
        raise ChatError(
            f"conversation must begin with a user turn, after the system turn if there is one; got "
            f"{[turn.role for turn in turns[:4]]}. Add what the user says."
        )
    if "system" in (late := [role for role, _ in merged]):
        raise ChatError(
            f"system turns must stand before all others; got one as number {late.index('system') + 1} of the merged "
            "turns. Move it to the front or make it a user turn."
        )
    return merged


def _merge(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Join turns of one role in a row. System text is not trimmed: Gemma 3's template leaves it as it is."""
    merged = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        texts = [turn.text if role == "system" else turn.text.strip() for turn in group]
        merged.append((role, _BREAK.join(filter(None, texts))))
    return merged
