"""Write a small corpus of made-up tales and notes, the same on every machine.

    python make_corpus.py FOLDER [N_TEXTS]

The texts are built from the words below, so they are ours to give away, under the licence of this project.
"""

import json
import random
import sys
from pathlib import Path

# kind of word -> the words, with "," between them
WORDS = {
    "names": (
        "Ada, Ben, Cora, Dan, Eli, Fay, Gus, Hana, Ivo, Jun, Kim, Leo, Mina, Ned, Ora, Pip, Rosa, Sam, Tess, "
        "Uma, Vic, Wen, Yara, Zoe"
    ),
    "beasts": (
        "fox, hare, owl, bear, cat, dog, goat, crow, mouse, toad, deer, duck, swan, mole, otter, badger, "
        "wren, lamb, pony, newt"
    ),
    "places": (
        "hill, river, mill, barn, bridge, garden, forest, harbor, meadow, cave, tower, market, pond, path, "
        "orchard, cellar"
    ),
    "things": (
        "lamp, key, apple, drum, kite, coin, book, bell, rope, hat, map, ring, shell, basket, candle, spoon, "
        "feather, stone"
    ),
    "traits": (
        "small, old, brave, quiet, proud, clever, sleepy, kind, hungry, lost, gentle, merry, shy, stubborn, young, tall"
    ),
    "weather": "rain, snow, wind, fog, sunshine, thunder, frost, mist, hail, moonlight",
    "deeds": (
        "found, dropped, hid, carried, painted, mended, sold, lost, washed, borrowed, counted, wrapped, "
        "buried, polished"
    ),
    "ways": ("slowly, at once, in the dark, with care, before noon, after supper, twice, all alone, by chance, again"),
    "feelings": "glad, sad, proud, angry, afraid, curious, calm, tired, amazed, sorry",
    "months": "January, February, March, April, May, June, July, August, September, October, November, December",
}

TALE = (
    "{name} had one {trait} {beast}.",
    "The {beast} {deed} the {thing} near the {place}.",
    "{name} {deed} the {thing} {way}.",
    "It was a day of {weather}.",
    "Nobody at the {place} was {feeling}.",
    "{name} and {other} went to the {place}.",
    '"Where is my {thing}?" asked {name}.',
    '"I am {feeling}," said the {beast}.',
    '"Look behind the {place}," said {other}.',
    "Then the {weather} came, and {name} ran home.",
    "One {trait} {beast} slept beside the {thing}.",
    "{other} gave the {beast} the {thing}.",
    "They {deed} it {way}.",
    "So {name} was {feeling} and {other} was {feeling2}.",
)
NOTE = (
    "On {month} {day} there was {weather} over the {place}.",
    "We counted {count} {beast} tracks by the {place}.",
    "The water stood {count} inches high.",
    "One {trait} {beast} was seen {way}.",
    "{name} {deed} the {thing} and wrote it down.",
    "The {thing} from the {place} weighs {count} grams.",
    "After {count} hours of {weather} the {beast} was gone.",
    "Of {count} nests {day} were empty.",
    "This {beast} is more {trait} than that {beast2}.",
)


def text(rng: random.Random, sentences: tuple[str, ...]) -> str:
    """Return some sentences about the same few names and beasts."""
    kinds = {kind: words.split(", ") for kind, words in WORDS.items()}
    name, other = rng.sample(kinds["names"], 2)
    beast, beast2 = rng.sample(kinds["beasts"], 2)
    feeling, feeling2 = rng.sample(kinds["feelings"], 2)
    fixed = {"name": name, "other": other, "beast": beast, "beast2": beast2, "feeling": feeling, "feeling2": feeling2}

    def filled(sentence: str) -> str:
        words = {kind.rstrip("s"): rng.choice(kinds[kind]) for kind in ("places", "things", "traits", "ways", "months")}
        words |= {"weather": rng.choice(kinds["weather"]), "deed": rng.choice(kinds["deeds"])}
        return sentence.format(**fixed, **words, day=rng.randint(1, 28), count=rng.randint(2, 90))

    return " ".join(filled(rng.choice(sentences)) for _ in range(rng.randint(6, 14)))


def main(folder: Path, n_texts: int) -> None:
    """Write tales.jsonl and notes.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sentences, seed, share in (("tales", TALE, 1, 0.6), ("notes", NOTE, 2, 0.4)):
        rng = random.Random(seed)
        rows = [json.dumps({"text": text(rng, sentences)}) + "\n" for _ in range(round(n_texts * share))]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
