"""The one small vocabulary of the tests, its golden ids, and texts that try to break a tokenizer."""

import json
from functools import cache
from pathlib import Path

import sentencepiece
import tokenizers
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from gemsmith.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
SMALL = GOLDEN / "small.model"
MARKS = ["<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<2mass>", "<unused7>"]
_PARTS = [*MARKS, "[@BOS@]", "<end_of_", "turn>", "<", ">", " ", "   ", "\n", "\n\n", "\t", "\t\t", "\r\n", "<b>"]
_WORDS = [
    "the",
    " the",
    " wolf",
    "1",
    "23",
    "é",
    "e\u0301",
    "👩‍👩‍👧",
    "好",
    "\x00",
    "\ue000",
    "user\n",
    "model\n",
    "<0x0A>",
]
# Texts a user might send, control pieces spelled in them more often than not.
HOSTILE = st.lists(st.sampled_from(_PARTS + _WORDS) | st.text(max_size=5), max_size=12).map("".join)
# The same without a spelled control piece.
PLAIN = HOSTILE.filter(lambda text: not any(mark in text for mark in [*MARKS, "[@BOS@]"]))


@cache
def small_tokenizer() -> Tokenizer:
    """Return 2,048 pieces learned from fairy tales, with Gemma 2's special pieces."""
    return Tokenizer.load(SMALL)


@cache
def reference() -> sentencepiece.SentencePieceProcessor:
    """Return sentencepiece's own reading of the same file."""
    return sentencepiece.SentencePieceProcessor(model_file=str(SMALL))


def golden(name: str) -> list[dict]:
    """Return the rows (name, text, plain, control) written by golden/make_golden.py."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def write_tokenizer_json(model: Path, path: Path, *, by_score: bool = True) -> tokenizers.Tokenizer:
    """Convert a `.model` as transformers does and return the tokenizers library's reading of it.

    Args:
        by_score: Order merges by score and length, as for models published with Gemma; else by the id of what
            they form, as transformers 5 does when it meets a `.model` alone.
    """
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes()).pieces
    ids = {piece.piece: token_id for token_id, piece in enumerate(pieces)}
    ways = [(text[:cut], text[cut:]) for text in ids for cut in range(1, len(text))]
    merges = [(left, right) for left, right in ways if left in ids and right in ids]
    if by_score:
        scores = {piece.piece: piece.score for piece in pieces}
        merges.sort(key=lambda pair: (scores["".join(pair)], len(pair[0]), len(pair[1])), reverse=True)
    result = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    result.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    result.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    given = [piece for piece in pieces if piece.type in (piece.CONTROL, piece.UNKNOWN, piece.USER_DEFINED)]
    result.add_tokens(
        [tokenizers.AddedToken(p.piece, normalized=False, special=p.type != p.USER_DEFINED) for p in given]
    )
    result.save(str(path))
    return result
