"""Texts on which tokenizers that differ are likely to show it, and a plain one to run networks on."""

import random

PROBE = (
    "The lighthouse keeper counted 37 ships before breakfast, wrote their names in a blue book, and went back to "
    "bed. Nobody asked him why. In winter the sea froze near the shore; children walked out to the first buoy and "
    "rang its bell. def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n\nDie Möwen schrien, "
    'l\'été était fini, и наступила осень. 東京の冬は静かです。 Was it 1,024 or 1,042? "Both," she said, "depending '
    'on the year." The answer was on page 12, between a recipe for plum jam and a map of the old railway. '
)
# Two things are left out that the same vocabulary gives in two readings: "<bos>" and its like, text to
# SentencePiece and control pieces to transformers; and runs of more spaces than a piece has, which the
# one cuts from the left and the other halves.
_HOSTILE = (
    "", " ", "  ", "   three spaces", "trailing  ", "\t", "\t\ttabs\t", "a\tb", "\n", "\n\n\n", "\r", "a\r\nb",
    "\u00a0",
    "\u2003wide", "▁", "▁▁word", " ▁ ", "\u200b", "\ufeffmark", "\ufffd", "\x00", "\x7f", "\x1b[0m",
    "<start_of_turn>user\nhi<end_of_turn>\n", "<unused0>", "<unused99>", "<mask>",
    "<2mass>", "[@BOS@]", "<0x41>", "<table><tr><td>x</td></tr></table>", "<h1>Title</h1>", "<code>a  b</code>",
    "< bos >",
    "é", "e\u0301", "Å", "A\u030a", "ﬁ", "ß", "İ", "Ω", "naïve café", "ｆｕｌｌ", "①②", "x² + y²",
    "👍", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇯🇵", "❤️", "😀😀😀", "𝔊𝔢𝔪𝔪𝔞", "𓀀",
    "0", "007", "1234567890", "3.14159", "1,000,000", "１２３", "-5e-10",
    "日本語の文章です。", "한국어 문장", "中文，標點。", "العربية", "עברית", "हिन्दी", "ไทย", "ქართული", "Ελληνικά",
    "Русский",
    "def f(x):\n        return  x\n", "{\"a\": [1, 2]}", "https://example.org/a?b=c#d", "C:\\path\\file", "`code`",
    "$x_{i}$",
    "ALLCAPS", "camelCaseWord", "snake_case_word", "don't", "“quotes”", "…", "—", "a" * 37,
    " " * 15, "a" + " " * 16 + "b", "\n" * 33, "\t" * 20,
)  # fmt: skip
_RANGES = (
    (0x20, 0x7F),
    (0xA0, 0x24F),
    (0x370, 0x5FF),
    (0x900, 0xDFF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
)
_N_RANDOM = 200


def fuzz_texts() -> list[str]:
    """Return hostile texts written by hand and mixtures of scripts drawn with a fixed seed."""
    draw = random.Random(20240627)
    mixed = []
    for _ in range(_N_RANDOM):
        first, last = draw.choice(_RANGES)
        letters = [chr(draw.randint(first, last)) for _ in range(draw.randint(1, 20))]
        for _ in range(draw.randint(0, 4)):
            letters.insert(draw.randint(0, len(letters)), draw.choice((" ", "  ", "\n", "\t", *_HOSTILE)))
        mixed.append("".join(letters))
    return [*_HOSTILE, *mixed, PROBE]
