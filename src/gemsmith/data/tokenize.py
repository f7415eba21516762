"""Documents into token ids and loss masks."""

from gemsmith.chat import Turn, compile_chat
from gemsmith.data.documents import Document
from gemsmith.data.shards import Tokenized
from gemsmith.tokenizer import Tokenizer


def tokenize(document: Document, tokenizer: Tokenizer, *, family: str) -> Tokenized:
    """Return a document's ids without BOS, and which of them count in the loss.

    A text counts in full and ends with EOS; of a conversation only the answers count, with the
    terminators that end them.
    """
    if not document.turns:
        token_ids = [*tokenizer.encode(document.text), tokenizer.eos_id]
        return token_ids, [True] * len(token_ids)
    chat = compile_chat([Turn(role, content) for role, content in document.turns], tokenizer, family=family)
    return list(chat.token_ids[1:]), list(chat.loss_mask[1:])
