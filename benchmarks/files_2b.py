"""Files of the Gemma 2 2B shape with random weights, one model in every format the comparison reads.

    python benchmarks/files_2b.py FOLDER [dense|int4|int8|int8-row|bf16.gguf|q8_0.gguf|q4_0.gguf ...]

Equal bits for all at 4 and at 8, embedding (the head too) included: groups of 32 with a 16-bit scale,
so 4.5 and 8.5 bits a weight; int8-row has one scale a row, so 8.0. What is there already is
left alone. OpenVINO's are made by peers/openvino_files.py, which its own environment runs.
"""

import itertools
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import random_network

from gemsmith.config import preset
from gemsmith.kernels.quantized import Quantized, Scheme
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import BYTE, CONTROL, SPACE, UNKNOWN, USER_DEFINED, Piece, Vocabulary
from gemsmith.weights.folder import load_network, save_folder
from gemsmith.weights.gguf_write import save_gguf
from gemsmith.weights.names import EMBEDDING_MODULE
from gemsmith.weights.quantized import put

SHAPE = "gemma-2-2b"
SCHEMES = {"int4": Scheme(4, 32), "int8": Scheme(8, 32), "int8-row": Scheme(8, None)}
KINDS = ("dense", "int4", "int8", "int8-row", "bf16.gguf", "q8_0.gguf", "q4_0.gguf")


def made_tokenizer(n_pieces: int) -> Tokenizer:
    """Return a vocabulary of as many pieces as the real one's: every word put together from shorter ones."""
    pieces = [Piece(word, 0.0, CONTROL) for word in ("<pad>", "<eos>", "<bos>")] + [Piece("<unk>", 0.0, UNKNOWN)]
    pieces += [Piece(word, 0.0, USER_DEFINED) for word in ("<start_of_turn>", "<end_of_turn>", "\n")]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = itertools.islice(_words(), n_pieces - len(pieces))
    pieces += [Piece(word, -float(place)) for place, word in enumerate(words)]
    return Tokenizer(Vocabulary.from_pieces(pieces))


def _words() -> Iterator[str]:
    yield from SPACE + string.ascii_letters + string.digits + string.punctuation
    for length in itertools.count(2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
            if length < 4:
                yield SPACE + "".join(letters)


def random_quantized(scheme: Scheme, *, seed: int = 0) -> Transformer:
    """Return the network with random values in few bits, none of them rounded from anything."""
    bits = scheme.bits
    config = preset(SHAPE)
    network = Transformer(config, dtype=torch.bfloat16, device="meta")
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, module in network.named_modules() if isinstance(module, Linear)]
    for name in (EMBEDDING_MODULE, *names):
        d_out, d_in = network.get_parameter(f"{name}.weight").shape
        values = torch.randint(0, 256, (d_out, d_in * bits // 8), generator=generator, dtype=torch.uint8)
        steps = 0.02 / 2 ** (bits - 2) * (0.75 + 0.5 * torch.rand(d_out, scheme.n_groups(d_in), generator=generator))
        stored = values if bits == 4 else values.view(torch.int8)
        put(network, name, Quantized(scheme, (d_out, d_in), stored, steps.bfloat16(), None))
    for name, parameter in list(network.named_parameters()):
        module, _, leaf = name.rpartition(".")
        norm = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator).bfloat16()
        setattr(network.get_submodule(module), leaf, torch.nn.Parameter(norm))
    return network.eval()


def make(folder: Path, kind: str) -> Path:
    """Write one model and return its place."""
    place = folder / kind
    if place.exists():
        return place
    if kind == "dense":
        network = random_network(preset(SHAPE))
        return save_folder(place, network, tokenizer=made_tokenizer(network.config.vocab_size))
    if kind in SCHEMES:
        network = random_quantized(SCHEMES[kind])
        return save_folder(place, network, tokenizer=made_tokenizer(network.config.vocab_size))
    dense = make(folder, "dense")
    network = load_network(dense).network
    return save_gguf(place, network, tokenizer=Tokenizer.load(dense), kind=kind.split(".")[0], name=SHAPE).path


def main(folder: Path, *kinds: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds or KINDS:
        start = time.perf_counter()
        place = make(folder, kind)
        files = [path for path in (place.iterdir() if place.is_dir() else [place]) if path.is_file()]
        n_bytes = sum(path.stat().st_size for path in files)
        print(f"{place}: {n_bytes / 1e9:.2f} GB, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
