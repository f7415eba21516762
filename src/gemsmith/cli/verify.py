"""`gemsmith verify`: are these two the same model, and is this folder what was saved?"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gemsmith.cli.console import UsageError, say, table, write, write_json
from gemsmith.cli.flags import AsJson
from gemsmith.cli.source import decode_utf8, read_bytes

if TYPE_CHECKING:
    from gemsmith.weights.parity import ParityReport

N_SHOWN = 5


def verify(
    a: str | None = None,
    b: str | None = None,
    /,
    *,
    text: Path | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    hashes: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Check that two models are the same, or that a folder is intact. Exits with 1 if not.

    Args:
        a: The box ("pebble"), a folder, a GGUF file, a pulled name, or "transformers:" and a
            folder to have it read by that library.
        b: The model to compare it with.
        text: A text file to measure the perplexity of both on.
        dtype: What both compute in.
        hashes: A folder or pulled model whose every file is compared with the hash recorded when it was saved.
    """
    if hashes is not None:
        if a is not None:
            raise UsageError(
                f"verify must check hashes or compare two models; got --hashes and {a!r}. Do one at a time."
            )
        return verify_files(hashes, as_json=as_json)
    if a is None or b is None:
        raise UsageError(f"verify must be given two models; got {a!r} and {b!r}. Call gemsmith verify A B.")
    from gemsmith.weights.parity import compare

    words = None if text is None else decode_utf8(read_bytes(text), source=repr(str(text)))
    report = compare(a, b, text=words, dtype=dtype)
    if as_json:
        write_json(report.to_json())
    else:
        write("\n".join(describe(report)))
    return 0 if report.same else 1


def verify_files(name: str, *, as_json: bool) -> int:
    """Hash every file of a model and compare; a damaged one is an error that names it."""
    from gemsmith.errors import CheckpointError
    from gemsmith.weights.catalog import find_model
    from gemsmith.weights.manifest import verify_hashes

    folder = find_model(name)
    if not folder.is_dir():
        raise CheckpointError(
            f"verify --hashes must be given a folder; got the file {str(folder)!r}, which has no record of hashes. "
            "Compare it with another model instead: gemsmith verify A B."
        )
    found = verify_hashes(folder)
    if as_json:
        write_json({"folder": str(folder), "files": found})
    elif found:
        write(table([(file, digest) for file, digest in found.items()]))
    if not found:
        say(f"gemsmith: {folder} has no record of hashes, so nothing was compared.")
        return 1
    say(f"{len(found)} files are what they were when they were saved.")
    return 0


def describe(report: "ParityReport") -> list[str]:
    """Return the report in words, what differs first."""
    lines = [f"{difference.name}: {difference.a!r} and {difference.b!r}" for difference in report.config_differences]
    if report.n_tokenizer_differences:
        lines.append(f"tokenizers disagree on {report.n_tokenizer_differences} of {report.n_texts} texts, such as")
        lines += [f"  {d.text!r}: {d.ids_a} and {d.ids_b}" for d in report.tokenizer_differences[:N_SHOWN]]
    else:
        lines.append(f"tokenizers agree on {report.n_texts} texts")
    rows = [("place", "largest error", "size of state", "first token beyond tolerance")]
    for layer in report.layers:
        token = "" if layer.token is None else str(layer.token)
        rows.append((layer.place, f"{layer.max_error:.2e}", f"{layer.scale:.2e}", token))
    lines.append(table(rows))
    lines.append(
        f"logits on {report.n_tokens} tokens: largest error {report.max_logit_error:.2e}, divergence "
        f"{report.logit_kl:.2e} nats, in {report.dtype}"
    )
    if report.first_divergence is not None:
        parting = report.first_divergence
        lines.append(f"first divergence: {parting.layer}, token {parting.token} (id {parting.token_id})")
    if report.ppl_a is not None and report.ppl_b is not None:
        lines.append(f"perplexity: {report.ppl_a:.4f} and {report.ppl_b:.4f}")
    lines.append(f"{report.a} and {report.b} are {'the same' if report.same else 'not the same'}")
    return lines
