"""What a caller may hand over as a prompt, and the ids it becomes."""

from collections.abc import Sequence

from gemsmith.chat import Turn, compile_chat
from gemsmith.config import ModelConfig
from gemsmith.errors import PromptError
from gemsmith.tokenizer import Tokenizer

# Text to continue; a conversation to answer; or ids that are taken as they are.
Prompt = str | Sequence[Turn] | Sequence[int]


def is_single(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Tell one prompt from a sequence of prompts."""
    return isinstance(prompt, str) or len(prompt) == 0 or isinstance(prompt[0], Turn | int)


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """Return the ids of a prompt: BOS and text, a conversation open for the answer, or ids as they are.

    Raises:
        PromptError: It is empty, no prompt at all, or leaves no room in the context.
        ChatError: The template cannot express the conversation.
    """
    if isinstance(prompt, str):
        token_ids = text_ids(prompt, tokenizer)
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"prompt must be text, turns or token ids; got {prompt!r}. Decode bytes as UTF-8 first.")
    elif not prompt:
        raise PromptError("prompt must hold at least one turn or token id; got []. There is nothing to answer.")
    elif all(isinstance(turn, Turn) for turn in prompt):
        turns = [turn for turn in prompt if isinstance(turn, Turn)]
        token_ids = compile_chat(turns, tokenizer, family=config.family, open_answer=True).token_ids
    else:
        token_ids = checked_ids(prompt, config.vocab_size)
    check_room(token_ids, config, n_new=1)
    return token_ids


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return BOS and the ids of a text that is not empty."""
    if not text:
        raise PromptError(
            "prompt must hold text; got ''. The model continues what it is given; for text from nowhere give it "
            "the id of BOS alone: [lm.tokenizer.bos_id]."
        )
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def checked_ids(token_ids: Sequence[object], vocab_size: int) -> list[int]:
    """Return token ids that the embedding has rows for."""
    ids = []
    for token_id in token_ids:
        if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise PromptError(
                f"prompt must be text, turns or ids below {vocab_size}; got {token_id!r} in it. "
                "Give several prompts as a list of prompts of one kind."
            )
        ids.append(token_id)
    return ids


def check_room(token_ids: Sequence[int], config: ModelConfig, *, n_new: int) -> None:
    """Refuse a prompt that leaves no place for `n_new` tokens; nothing is ever cut off in silence."""
    if len(token_ids) + n_new > config.max_seq_len:
        rest = f" and leave room for {n_new} more" if n_new else ""
        raise PromptError(
            f"prompt must fit the model's context of {config.max_seq_len} tokens{rest}; got {len(token_ids)} tokens. "
            "Shorten it, or choose a model with a longer context."
        )
