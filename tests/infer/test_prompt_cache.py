"""A prompt read once gives what reading it again would; a file of another model, or a damaged one, is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import pytest
import torch

from gemsmith.chat import Turn
from gemsmith.errors import CacheError, CheckpointError, MemoryLimitError, StorageError
from gemsmith.infer import fingerprint as fingerprint_module
from gemsmith.infer import generate as generate_module
from gemsmith.infer import prompt_cache as prompt_cache_module
from gemsmith.infer.fingerprint import fingerprint
from gemsmith.infer.lm import LM
from gemsmith.infer.prompt_cache import FORMAT, PromptCache
from gemsmith.infer.sample import Sampling
from gemsmith.kernels.fused_adamw import AdamW
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.cache import KVCache
from gemsmith.model.layout import Layout
from gemsmith.model.linear import Linear, LowRank
from gemsmith.model.quantized import quantize_network
from gemsmith.tokenizer import Tokenizer
from tiny import FAMILIES, WINDOW, tiny_network

TEXT = "seven small cats sing about warm rain and old trees while the lazy dog jumps over the quick brown fox"
GREEDY = {"temperature": 0.0, "max_new_tokens": 16, "top_logprobs": 3}


def assert_same(lm: LM, prompt: object, known: PromptCache, n_cached: int) -> None:
    """Check that a completion with a prompt cache is the one without."""
    plain = lm.generate(prompt, **GREEDY)  # pyright: ignore
    found = lm.generate(prompt, prompt_cache=known, **GREEDY)  # pyright: ignore
    assert found.n_cached_tokens == n_cached
    assert plain.n_cached_tokens == 0
    assert found.token_ids == plain.token_ids
    assert found.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_prompt_gives_the_same_completion(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = LM(tiny_network(family, vocab_size=tokenizer.vocab_size), tokenizer)
    path = lm.save_prompt(lm.read_prompt(TEXT), tmp_path / "prompt.cache")
    known = lm.load_prompt(path)
    assert len(known.token_ids) > 2 * WINDOW
    assert_same(lm, TEXT, known, len(known.token_ids) - 1)


def test_a_file_holds_the_very_bits(lm: LM, tmp_path: Path) -> None:
    read = lm.read_prompt(TEXT)
    loaded = lm.load_prompt(lm.save_prompt(read, tmp_path / "prompt.cache"))
    assert loaded.token_ids == read.token_ids
    assert loaded.stores.keys() == read.stores.keys() != set()
    assert all(torch.equal(loaded.stores[name], x) for name, x in read.stores.items())


def test_an_int8_cache_keeps_its_scales(tokenizer: Tokenizer, tmp_path: Path) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size)
    lm = LM(network, tokenizer, cache_dtype="int8")
    path = lm.save_prompt(lm.read_prompt(TEXT), tmp_path / "prompt.cache")
    known = lm.load_prompt(path)
    assert known.stores["keys.0"].dtype == torch.int8
    assert_same(lm, [*known.token_ids, 7], known, len(known.token_ids))
    wide = LM(network, tokenizer)
    with pytest.raises(CacheError, match=r"float32 keys; got torch\.int8 for layer 0"):
        wide.generate(TEXT, prompt_cache=wide.load_prompt(path))


def test_several_prompts_share_what_they_have_in_common(lm: LM) -> None:
    known = lm.read_prompt(TEXT)
    ids = list(known.token_ids)
    prompts = [[*ids, 5, 6, 7], ids[:-3], [*ids[:20], 9, 9], [lm.tokenizer.bos_id, 7, 7], [9, 8]]
    plain = lm.generate(prompts, n=2, seed=3, max_new_tokens=9)
    found = lm.generate(prompts, n=2, seed=3, max_new_tokens=9, prompt_cache=known)
    n_cached = [len(ids), len(ids) - 4, 20, 1, 0]
    for plain_group, group, wanted in zip(plain, found, n_cached, strict=True):
        assert [c.token_ids for c in group] == [c.token_ids for c in plain_group]
        assert [c.n_cached_tokens for c in group] == [wanted] * 2


def known_with_short_rings(lm: LM, ids: list[int], *, slack: int) -> PromptCache:
    """Read ids through a cache whose rings hold no more than a window and `slack`."""
    cache = KVCache(lm.config, capacity=len(ids), slack=slack)
    with torch.inference_mode():
        lm.network.hidden(torch.tensor(ids), Layout.packed([len(ids)]), cache=cache)
    return PromptCache.of(cache, ids, network=lm.network)


def test_rings_give_back_no_more_than_their_slack(lm: LM) -> None:
    ids = list(lm.read_prompt(TEXT).token_ids)
    known = known_with_short_rings(lm, ids, slack=4)
    assert known.stores["keys.0"].shape[1] == WINDOW + 4
    assert known.stores["keys.1"].shape[1] == len(ids)
    for n_back, n_shared in ((1, len(ids) - 1), (4, len(ids) - 4), (5, len(ids) - 5), (6, 0), (20, 0)):
        prompt = [*ids[:-n_back], 11, 12]
        if prompt[len(ids) - n_back] == ids[len(ids) - n_back]:
            prompt[len(ids) - n_back] = 13
        assert known.n_shared(prompt) == n_shared
        assert_same(lm, prompt, known, n_shared)


def test_a_filled_slot_remembers_how_far_its_rings_have_gone(lm: LM) -> None:
    ids = list(lm.read_prompt(TEXT).token_ids)
    known = known_with_short_rings(lm, ids, slack=4)
    cache = KVCache(lm.config, capacity=len(ids), slack=4)
    known.fill(cache, len(ids) - 3)
    cache.rollback(1)
    with pytest.raises(CacheError, match=f"return to {len(ids) - 5}"):
        cache.rollback(1)


def test_a_read_prompt_can_grow(lm: LM) -> None:
    short = lm.read_prompt(TEXT[:40])
    longer = lm.read_prompt(TEXT, prompt_cache=short)
    assert_same(lm, TEXT, longer, len(longer.token_ids) - 1)


def test_reading_a_prompt_makes_nothing_to_write_with(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("decode_step", "History"):
        monkeypatch.setattr(generate_module, name, None)
    reader = LM(lm.network, lm.tokenizer, sampling=Sampling(repetition_penalty=1.2))
    assert reader.read_prompt("the quick").n_bytes > 0


def test_a_prompt_is_not_kept_by_a_damaged_model(tokenizer: Tokenizer) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        network.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="got nan"):
        LM(network, tokenizer).read_prompt("the")


def test_a_grown_prompt_claims_no_more_than_its_rings_were_given(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "PREFILL_CHUNK", 32)  # rings of 40 places
    ids = [lm.tokenizer.bos_id, *(300 + 7 * i % 250 for i in range(119))]
    first = lm.read_prompt(ids)
    second = lm.read_prompt([*ids[:100], 9], prompt_cache=first)  # is given 80 to 99 alone
    assert second.stores["keys.0"].shape[1] == 21
    assert second.stores["keys.1"].shape[1] == 101
    loaded = lm.load_prompt(lm.save_prompt(second, tmp_path / "prompt.cache"))
    for known in (second, loaded):
        assert_same(lm, [*ids[:70], 11, 12], known, 0)
        assert_same(lm, [*ids[:87], 11, 12], known, 87)
        assert_same(lm, [*ids[:86], 11, 12], known, 0)
        assert_same(lm, [*ids[:100], 9, 8], known, 101)


def test_a_slot_filled_from_short_rings_goes_back_no_further_than_they_did(lm: LM) -> None:
    ids = list(lm.read_prompt(TEXT).token_ids)
    known = known_with_short_rings(lm, ids, slack=4)
    cache = KVCache(lm.config, capacity=len(ids), slack=len(ids))
    known.fill(cache, len(ids) - 3)
    cache.rollback(1)
    with pytest.raises(CacheError, match=f"return to {len(ids) - 5}"):
        cache.rollback(1)


def test_a_prompt_rolled_back_has_lost_what_came_after_it_wrote_over(lm: LM) -> None:
    ids = list(lm.read_prompt(TEXT).token_ids)
    cache = KVCache(lm.config, capacity=len(ids), slack=4)
    with torch.inference_mode():
        lm.network.hidden(torch.tensor(ids), Layout.packed([len(ids)]), cache=cache)
    cache.rollback(3)
    known = PromptCache.of(cache, ids[:-3], network=lm.network)
    assert known.stores["keys.0"].shape[1] == WINDOW + 4 - 3
    assert_same(lm, ids, known, len(ids) - 3)
    assert known.n_shared([*ids[:-6], 9, 9]) == 0


def test_a_conversation_goes_on(lm: LM, tmp_path: Path) -> None:
    turns = [Turn("system", TEXT), Turn("user", "sing")]
    known = lm.load_prompt(lm.save_prompt(lm.read_prompt(turns), tmp_path / "talk.cache"))
    later = [*turns, Turn("model", "warm rain"), Turn("user", "jump")]
    stream = lm.stream(later, prompt_cache=known, temperature=0.0, max_new_tokens=8)
    assert "".join(stream) == lm.generate(later, temperature=0.0, max_new_tokens=8).text
    assert stream.completion.n_cached_tokens == len(known.token_ids)


def test_a_cache_of_another_model_is_refused(lm: LM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    known = lm.read_prompt(TEXT)
    path = lm.save_prompt(known, tmp_path / "prompt.cache")
    other = LM(tiny_network(vocab_size=lm.config.vocab_size, seed=1), tokenizer, name="other")
    with pytest.raises(CacheError, match=r"must be of this model, .* got '"):
        other.load_prompt(path)
    with pytest.raises(CacheError, match="'other'"):
        other.generate(TEXT, prompt_cache=known)


def test_a_cache_of_another_adapter_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = LM(tiny_network(vocab_size=tokenizer.vocab_size), tokenizer)
    path = lm.save_prompt(lm.read_prompt(TEXT), tmp_path / "prompt.cache")
    attach_delta(lm)
    with pytest.raises(CacheError, match="must be of this adapter"):
        lm.load_prompt(path)


def attach_delta(lm: LM) -> None:
    q_proj = cast(Linear, lm.network.get_submodule("layers.0.self_attn.q_proj"))
    q_proj.delta = LowRank(torch.ones(1, 2, q_proj.d_in), torch.ones(1, q_proj.d_out, 2), torch.ones(1))


def train_step(lm: LM) -> None:
    for parameter in lm.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    AdamW(lm.network.parameters(), lr=0.01).step()


def load_other(lm: LM) -> None:
    lm.network.load_state_dict(tiny_network(vocab_size=lm.config.vocab_size, seed=1).state_dict())


CHANGES = [
    (load_other, "embed_tokens.weight"),
    (train_step, "embed_tokens.weight"),
    (lambda lm: lm.network.to(torch.bfloat16), "embed_tokens.weight"),
    (attach_delta, "layers.0.self_attn.q_proj.delta.lora_a"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES, ids=["load", "train", "cast", "attach"])
def test_a_prompt_read_before_the_model_changed_is_refused(
    change: Callable[[LM], object], name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = LM(tiny_network(vocab_size=tokenizer.vocab_size), tokenizer)
    path = lm.save_prompt(lm.read_prompt(TEXT), tmp_path / "old.cache")
    stale = (lm.read_prompt(TEXT), lm.load_prompt(path))
    stream = lm.stream(TEXT, prompt_cache=stale[0])
    change(lm)
    for known in stale:
        with pytest.raises(CacheError, match=f"got one of before '{name}' was changed"):
            lm.generate(TEXT, prompt_cache=known)
        with pytest.raises(CacheError, match=name):
            lm.read_prompt(TEXT, prompt_cache=known)
        with pytest.raises(CacheError, match=name):
            lm.save_prompt(known, tmp_path / "new.cache")
    with pytest.raises(CacheError, match=name):
        next(stream)
    assert not (tmp_path / "new.cache").exists()


def test_a_prompt_read_with_an_adapter_is_refused_without_it_and_with_another(tokenizer: Tokenizer) -> None:
    lm = LM(tiny_network(vocab_size=tokenizer.vocab_size), tokenizer)
    q_proj = cast(Linear, lm.network.get_submodule("layers.0.self_attn.q_proj"))
    attach_delta(lm)
    known = lm.read_prompt(TEXT)
    assert lm.generate(TEXT, prompt_cache=known, max_new_tokens=1).n_cached_tokens > 0
    q_proj.delta = None
    with pytest.raises(CacheError, match=r"q_proj\.delta"):
        lm.generate(TEXT, prompt_cache=known)
    attach_delta(lm)  # may well lie where the first one lay
    with pytest.raises(CacheError, match=r"q_proj\.delta"):
        lm.generate(TEXT, prompt_cache=known)


def test_a_cache_of_another_template_is_refused(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lm.save_prompt(lm.read_prompt(TEXT), tmp_path / "prompt.cache")
    compiled = fingerprint_module.compile_chat

    def other(turns: list[Turn], *arguments: object, **options: object) -> object:
        return compiled(turns[:2], *arguments, **options)  # pyright: ignore

    monkeypatch.setattr(fingerprint_module, "compile_chat", other)
    with pytest.raises(CacheError, match="must be of this template"):
        lm.load_prompt(path)


@pytest.mark.parametrize("place", ["layers.2.mlp.down_proj.weight", "layers.3.post_feedforward_layernorm.weight"])
def test_one_changed_matrix_makes_another_model(place: str, tokenizer: Tokenizer) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size)
    before = fingerprint(network, tokenizer)
    with torch.no_grad():
        network.get_parameter(place).mul_(1.01)
    after = fingerprint(network, tokenizer)
    assert after.model != before.model
    assert (after.adapter, after.template) == (before.adapter, before.template)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_packing_does_not_make_another_model(bits: Literal[4, 8] | None, tokenizer: Tokenizer) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size, dtype=torch.bfloat16)
    if bits is not None:
        quantize_network(
            network, lambda _name, module: Scheme(bits, 32) if module.stored()[0].shape[1] % 32 == 0 else None
        )
    before = fingerprint(network, tokenizer)
    network.pack()
    assert fingerprint(network, tokenizer) == before


def test_a_file_cut_anywhere_is_refused(lm: LM, tmp_path: Path) -> None:
    data = lm.save_prompt(lm.read_prompt("the quick"), tmp_path / "prompt.cache").read_bytes()
    broken = tmp_path / "broken"
    for n in (*range(0, len(data) - 1, len(data) // 50), len(data) - 1):
        broken.write_bytes(data[:n])
        with pytest.raises(CacheError, match="intact"):
            lm.load_prompt(broken)


def test_a_changed_byte_is_seen(lm: LM, tmp_path: Path) -> None:
    path = lm.save_prompt(lm.read_prompt("the quick"), tmp_path / "prompt.cache")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheError, match="contents that have changed"):
        lm.load_prompt(path)


def rewritten(path: Path, name: str, change: dict[str, object] | None) -> None:
    """Change an entry of a file's table, or take it out, and leave the rest as it is."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + n])
    if change is None:
        table["__metadata__"].pop(name, None)
    else:
        table[name] |= change
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + n :])


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("format", None, "got None"),
        ("sha256", None, "contents that have changed"),
        ("token_ids", {"dtype": "F64"}, "F64"),
        ("keys.1", {"shape": [1, 2, 2, 12]}, r"\[1, 2, 2, 12\]"),
        ("__metadata__", {"format": 3}, "as its metadata"),
        ("__metadata__", {"format": "gemsmith prompt cache 99"}, "cache 99"),
    ],
)
def test_a_hostile_table_is_named(
    name: str, change: dict[str, object] | None, found: str, lm: LM, tmp_path: Path
) -> None:
    path = lm.save_prompt(lm.read_prompt([lm.tokenizer.bos_id, 7]), tmp_path / "prompt.cache")
    rewritten(path, name, change)
    with pytest.raises(CacheError, match=found):
        lm.load_prompt(path)


def test_files_of_other_kinds_are_named(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="No such file"):
        lm.load_prompt(tmp_path / "none")
    (tmp_path / "text").write_text("no prompt cache, but more than a few bytes long")
    with pytest.raises(CacheError, match="intact"):
        lm.load_prompt(tmp_path / "text")
    folder = lm.save(tmp_path / "model")
    with pytest.raises(CacheError, match=f"format must be '{FORMAT}'; got 'pt'"):
        lm.load_prompt(folder / "model.safetensors")


def test_nothing_else_is_overwritten(lm: LM, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    known = lm.read_prompt("the quick")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        lm.save_prompt(known, path)
    assert path.read_text() == "mine"
    first = lm.save_prompt(known, tmp_path / "prompt.cache")
    assert lm.save_prompt(lm.read_prompt(TEXT), first) == first
    assert len(lm.load_prompt(first).token_ids) > len(known.token_ids)


def test_a_failed_save_leaves_the_old_file(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lm.save_prompt(lm.read_prompt("the quick"), tmp_path / "prompt.cache")
    before = path.read_bytes()

    def full(place: Path, *_: object, **__: object) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompt_cache_module, "write_shard", full)
    with pytest.raises(StorageError, match="No space left"):
        lm.save_prompt(lm.read_prompt(TEXT), path)
    assert path.read_bytes() == before
    assert [place.name for place in tmp_path.iterdir()] == ["prompt.cache"]


def test_a_cache_larger_than_memory_is_named(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lm.save_prompt(lm.read_prompt("the quick"), tmp_path / "prompt.cache")
    monkeypatch.setattr(prompt_cache_module, "available_bytes", lambda: 100)
    with pytest.raises(MemoryLimitError, match=r"prompt\.cache"):
        lm.load_prompt(path)


def test_a_cache_of_other_numbers_is_refused(lm: LM) -> None:
    known = lm.read_prompt("the quick")
    with pytest.raises(CacheError, match=r"bfloat16 keys; got torch\.float32 for layer 0"):
        known.fill(KVCache(lm.config, capacity=40, dtype=torch.bfloat16), 3)
