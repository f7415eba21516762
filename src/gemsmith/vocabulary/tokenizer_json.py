"""A `tokenizer.json` read as a SentencePiece vocabulary that gives the same ids.

The tokenizers library merges the pair of neighbours that comes first in a list of pairs;
SentencePiece merges the pair whose union has the best score. The two agree when every way to form a
piece is listed, all of them together, so the place of a piece in the list can serve as its score.
That is how Gemma's files are converted, and it is checked here; a list that says something else is
refused. Text is cut at the added tokens first, which is what SentencePiece does at user-defined pieces.

The file itself differs from the vocabulary it was converted from in two points: runs of spaces are
merged, not cut out, so one longer than the longest piece may be divided differently; and files of
Gemma 1 and 2 call the byte piece of the tab a tab.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemsmith.errors import TokenizerError
from gemsmith.vocabulary.model_file import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Piece, Vocabulary

_KINDS = {"<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL, "<unk>": UNKNOWN}
_TO_SPACE_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# After the replacement no space is left for it to find.
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


@dataclass(frozen=True)
class TokenizerJson:
    """What a file says.

    Attributes:
        texts: Every piece in the order of ids, added tokens included.
        added: Ids that are cut out of a text before anything else. A token that holds the space mark
            and is looked for before spaces are marked is never found, so it is not among them.
        merges: Pairs of pieces, the first to be merged first.
    """

    texts: list[str]
    added: frozenset[int]
    merges: Sequence[Any]

    @classmethod
    def parse(cls, data: bytes) -> "TokenizerJson":
        """Read the bytes of a file; raises ValueError, KeyError or TypeError where they are no such file."""
        document = json.loads(data)
        _check_settings(document)
        ids = dict(document["model"]["vocab"])
        ids.update((token["content"].replace(" ", SPACE), token["id"]) for token in document["added_tokens"])
        texts = sorted(ids, key=ids.__getitem__)
        for place, text in enumerate(texts):
            if ids[text] != place:
                raise _unusable("number its pieces 0, 1, 2, ...", f"{text!r} with id {ids[text]} in place {place}")
        if missing := [text for text in _KINDS if text not in ids]:
            raise _unusable("have the pieces <pad>, <eos>, <bos> and <unk>", f"none for {', '.join(missing)}")
        added = frozenset(
            token["id"] for token in document["added_tokens"] if token["normalized"] or SPACE not in token["content"]
        )
        return cls(_name_bytes(texts), added, document["model"]["merges"])

    def to_vocabulary(self) -> Vocabulary:
        """Return the same vocabulary as SentencePiece would have written it."""
        kinds = [self._kind(token_id, text) for token_id, text in enumerate(self.texts)]
        scores = self._scores({text for text, kind in zip(self.texts, kinds, strict=True) if kind == NORMAL})
        pieces = [Piece(text, scores.get(text, 0.0), kind) for text, kind in zip(self.texts, kinds, strict=True)]
        return Vocabulary.from_pieces(pieces)

    def _kind(self, token_id: int, text: str) -> int:
        if text in _KINDS:
            return _KINDS[text]
        if token_id in self.added:
            return USER_DEFINED
        return BYTE if is_byte(text) else NORMAL

    def _scores(self, ordinary: set[str]) -> dict[str, float]:
        """Return minus the place of each merged piece in the list of merges."""
        scores: dict[str, float] = {}
        counts: dict[str, int] = {}
        last = ""
        for merge in self.merges:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            text = left + right
            if text == last:
                counts[text] += 1
            elif text in ordinary:
                # Runs of spaces may be listed by the length of their left half: their order still holds.
                if text in scores and text.strip(SPACE):
                    raise _unusable("list the merges that form one piece together", f"those of {text!r} apart")
                scores.setdefault(text, -float(len(scores)))
                counts[text], last = counts.get(text, 0) + 1, text
        self._check_complete(ordinary, counts)
        return scores

    def _check_complete(self, ordinary: set[str], counts: dict[str, int]) -> None:
        """Refuse a list that forms a piece in fewer ways than SentencePiece would."""
        known = {*self.texts, "\t"}
        for text in ordinary:
            n_splits = 0
            for cut in range(1, len(text)):
                if text[:cut] in known and text[cut:] in known:
                    n_splits += 1
            if n_splits != counts.get(text, 0):
                n_merges = counts.get(text, 0)
                raise _unusable("list every merge", f"{n_merges} that form {text!r}, spelled by {n_splits} pairs")


def _unusable(rule: str, found: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.json must {rule}; got {found}. Use the tokenizer.model it was converted from.")


def is_byte(text: str) -> bool:
    """Tell whether a piece is the fallback for one byte, such as `<0x0A>`."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _name_bytes(texts: list[str]) -> list[str]:
    """Give back its name to the byte piece of the tab, which converted files of Gemma 1 and 2 call a tab."""
    if "<0x09>" in texts or "\t" not in texts:
        return texts
    return ["<0x09>" if text == "\t" else text for text in texts]


def _check_settings(document: dict[str, Any]) -> None:
    model = document["model"]
    normalizer = document.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence" and len(normalizer["normalizers"]) == 1:
        normalizer = normalizer["normalizers"][0]
    for name, value, allowed in (
        ("model.type", model.get("type"), ["BPE"]),
        ("model.byte_fallback", model.get("byte_fallback"), [True]),
        ("model.dropout", model.get("dropout"), [None, 0]),
        ("model.ignore_merges", model.get("ignore_merges"), [None, False]),
        ("normalizer", normalizer, [_TO_SPACE_MARK]),
        ("pre_tokenizer", document.get("pre_tokenizer"), [None, _SPLIT_AT_SPACES]),
    ):
        if value not in allowed:
            raise TokenizerError(
                f"{name} of tokenizer.json must be {allowed[0]!r}; got {value!r}. "
                "Use the file that was published with the Gemma model, or its tokenizer.model."
            )
