"""Generation against a slow loop without a cache, in batches, and at its ends."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import gemsmith.infer.generate as generate_module
from gemsmith.errors import CheckpointError, MemoryLimitError, PromptError, SamplingError
from gemsmith.infer.completion import Completion
from gemsmith.infer.lm import LM
from gemsmith.infer.noise import completion_streams
from gemsmith.infer.penalties import History
from gemsmith.infer.sample import Sampling, pick
from gemsmith.kernels import native
from gemsmith.model import ops
from gemsmith.model.linear import Linear, LowRank
from gemsmith.tokenizer import Tokenizer
from tiny import FAMILIES, tiny_network

SAMPLINGS = [
    Sampling(temperature=0.0),
    Sampling(seed=3),
    Sampling(temperature=0.8, top_k=30, top_p=0.9, min_p=0.01, seed=4),
    Sampling(repetition_penalty=1.4, presence_penalty=0.7, frequency_penalty=0.4, logit_bias={300: 3.0}, seed=5),
]
PROMPTS = ["the quick brown fox", "a", "seven small cats sing about warm rain and old trees while the lazy dog jumps"]


def slow_completion(lm: LM, prompt: list[int], sampling: Sampling, n_tokens: int, index: int = 0) -> list[int]:
    """Run the whole text through the network for every token, one row at a time."""
    token_ids = list(prompt)
    history = History([prompt], lm.tokenizer.vocab_size)
    stream = completion_streams(sampling.seed or 0, torch.tensor([index]))
    for position in range(len(prompt), len(prompt) + n_tokens):
        with torch.inference_mode():
            logits = lm.network(torch.tensor([token_ids]))[:, -1, : lm.tokenizer.vocab_size]
        chosen = pick(logits, sampling, streams=stream, positions=torch.tensor([position]), history=history)
        history.add(chosen)
        token_ids.append(int(chosen))
    return token_ids[len(prompt) :]


def open_ended(lm: LM) -> LM:
    """Return the model without stop ids, so that every completion has its full length."""
    other = LM(lm.network, lm.tokenizer, name=lm.name)
    other.stop_ids = frozenset()
    return other


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "plain", "truncated", "penalties"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_a_slow_loop_without_cache(family: str, sampling: Sampling, tokenizer: Tokenizer) -> None:
    lm = open_ended(LM(tiny_network(family, vocab_size=tokenizer.vocab_size), tokenizer))
    for text in PROMPTS[::2]:
        completion = lm.generate(text, max_new_tokens=24, sampling=sampling)
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        assert list(completion.token_ids) == slow_completion(lm, prompt, sampling, 24)


def test_prefill_in_chunks_smaller_than_the_window_changes_nothing(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lm.generate(PROMPTS, n=2, seed=1, max_new_tokens=20)
    monkeypatch.setattr(generate_module, "PREFILL_CHUNK", 5)
    chunked = lm.generate(PROMPTS, n=2, seed=1, max_new_tokens=20)
    assert ids_of(chunked) == ids_of(whole)


def ids_of(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=["plain", "truncated", "penalties"])
def test_a_prompt_alone_gives_what_it_gives_in_a_batch(lm: LM, sampling: Sampling) -> None:
    together = lm.generate(PROMPTS, sampling=sampling, max_new_tokens=30)
    for prompt, found in zip(PROMPTS, together, strict=True):
        alone = lm.generate(prompt, sampling=sampling, max_new_tokens=30)
        assert (found.token_ids, found.text, found.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)


def test_n_completions_equal_those_asked_for_one_by_one(lm: LM) -> None:
    together = lm.generate(PROMPTS[0], n=4, seed=9, max_new_tokens=25)
    assert len({completion.token_ids for completion in together}) == 4
    assert [completion.index for completion in together] == [0, 1, 2, 3]
    for completion in together:
        (alone,) = lm.generate(PROMPTS[0], n=1, seed=9, max_new_tokens=25, first_index=completion.index)
        assert alone.token_ids == completion.token_ids


def test_a_completion_continued_later_goes_on_as_if_never_interrupted(lm: LM) -> None:
    lm = open_ended(lm)
    prompt = [lm.tokenizer.bos_id, *lm.tokenizer.encode(PROMPTS[0])]
    whole = lm.generate(prompt, seed=2, max_new_tokens=20).token_ids
    rest = lm.generate([*prompt, *whole[:8]], seed=2, max_new_tokens=12).token_ids
    assert whole[8:] == rest


def test_a_drawn_seed_is_named_and_repeats_the_text(lm: LM) -> None:
    first, second = (lm.generate(PROMPTS[0], max_new_tokens=10) for _ in range(2))
    assert first.seed != second.seed
    assert lm.generate(PROMPTS[0], max_new_tokens=10, seed=first.seed).token_ids == first.token_ids


def test_the_prompt_is_read_once_for_all_its_completions(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    n_read = []
    hidden = type(lm.network).hidden
    monkeypatch.setattr(
        type(lm.network), "hidden", lambda self, ids, *a, **k: (n_read.append(len(ids)), hidden(self, ids, *a, **k))[1]
    )
    open_ended(lm).generate(PROMPTS[0], n=4, max_new_tokens=3)
    n_prompt = 1 + len(lm.tokenizer.encode(PROMPTS[0]))
    assert n_read in ([n_prompt, 4, 4], [n_prompt])  # module by module, or in the compiled step


def test_the_cache_has_room_for_the_request_and_no_more(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = generate_module.KVCache
    monkeypatch.setattr(generate_module, "KVCache", lambda *a, **k: made.append(k) or real(*a, **k))
    completion = lm.generate("the", max_new_tokens=7)
    assert made[0]["capacity"] == completion.n_prompt_tokens + 7 < lm.config.max_seq_len


@pytest.mark.skipif(not native.is_loaded(), reason="no compiled kernels here; make kernels builds them")
@pytest.mark.parametrize("has_deltas", [False, True])
def test_a_token_is_two_calls_of_the_library(lm: LM, monkeypatch: pytest.MonkeyPatch, has_deltas: bool) -> None:
    library, called = native.need(), []
    if has_deltas:
        attach_deltas(lm, seed=1)

    class Counting:
        def __getattr__(self, name: str) -> Callable[..., object]:
            return lambda *arguments: called.append(name) or getattr(library, name)(*arguments)

    monkeypatch.setattr(native, "need", Counting)
    stream = iter(open_ended(lm).stream("the fox", max_new_tokens=12, seed=1))
    next(stream)
    called.clear()
    assert sum(1 for _ in stream) > 5
    assert len(called) > 10
    assert called == ["gs_decode", "gs_pick"] * (len(called) // 2)


def attach_deltas(lm: LM, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def attach(_: str, linear: Linear) -> Linear:
        a, b = (torch.randn(shape, generator=generator) * 0.2 for shape in ((1, 3, linear.d_in), (1, linear.d_out, 3)))
        linear.delta = LowRank(a, b, torch.ones(1))
        return linear

    lm.network.replace_linears(attach)


def detach_deltas(lm: LM) -> None:
    def detach(_: str, linear: Linear) -> Linear:
        linear.delta = None
        return linear

    lm.network.replace_linears(detach)


def test_deltas_that_come_change_and_go_while_text_is_written_are_heeded(lm: LM) -> None:
    def text(limit: int) -> list[str]:
        detach_deltas(lm)
        stream, pieces = iter(open_ended(lm).stream("the fox", max_new_tokens=24, temperature=0.0)), []
        for index, piece in enumerate(stream):
            pieces.append(piece)
            if index in (4, 10) and index < limit:
                attach_deltas(lm, seed=index)
            if index == 16:
                detach_deltas(lm)
        return pieces

    found, with_one, without = text(24), text(10), text(0)
    with ops.plain_only():
        assert text(24) == found
    assert found[:5] == with_one[:5] == without[:5]
    assert found[:11] == with_one[:11]
    assert len({"".join(found), "".join(with_one), "".join(without)}) == 3


@pytest.mark.parametrize(
    ("n_threads", "is_small", "fewer"), [(1, True, None), (2, True, 1), (8, True, 1), (2, False, None), (8, False, 4)]
)
def test_the_compiled_step_may_try_fewer_threads(
    lm: LM, monkeypatch: pytest.MonkeyPatch, n_threads: int, is_small: bool, fewer: int | None
) -> None:
    asked = {}
    monkeypatch.setattr(generate_module, "decode_step", lambda network, cache, **options: asked.update(options))
    monkeypatch.setattr(generate_module, "decode_threads", lambda network: 1 if is_small else n_threads)
    monkeypatch.setattr("torch.get_num_threads", lambda: n_threads)
    lm.generate("the", max_new_tokens=1, temperature=0.0)
    assert asked == {"n_threads": n_threads, "fewer": fewer}


@pytest.mark.parametrize(("n_prompt", "is_settled"), [(9, False), (10, True)])
def test_caches_of_long_prompts_are_brought_to_large_pages(
    lm: LM, monkeypatch: pytest.MonkeyPatch, n_prompt: int, is_settled: bool
) -> None:
    settled: list[list[torch.Tensor]] = []
    monkeypatch.setattr(generate_module, "settle", lambda tensors: settled.append(list(tensors)))
    lm.generate([2] * n_prompt, max_new_tokens=20 - n_prompt, temperature=0.0)
    assert [len(tensors) > 0 for tensors in settled] == [True] * is_settled


def test_a_cache_larger_than_memory_is_refused_before_it_is_made(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "available_bytes", lambda device: 1000)
    with pytest.raises(MemoryLimitError, match=r"the cache of 64 x \d+ tokens must fit into memory; got .* needed"):
        lm.generate("the", n=64, max_new_tokens=200)


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=["plain", "truncated", "penalties"])
def test_rows_that_finish_leave_the_batch(lm: LM, sampling: Sampling) -> None:
    lm = open_ended(lm)
    full = lm.generate(PROMPTS[0], n=3, sampling=sampling, max_new_tokens=12)
    first, second, third = (list(completion.token_ids) for completion in full)
    place = next(i for i in range(2, 8) if second[i] not in first + third + second[:i])
    cut = lm.generate(PROMPTS[0], n=3, sampling=sampling, max_new_tokens=12, stop_ids=[second[place]])
    assert [list(c.token_ids) for c in cut] == [first, second[: place + 1], third]
    assert [c.finish_reason for c in cut] == ["length", "stop", "length"]
    assert cut[1].text == lm.tokenizer.decode(second[:place])


@pytest.mark.parametrize("name", ["eos_id", "end_of_turn"])
def test_the_models_own_stop_ids_end_the_text_and_are_not_in_it(lm: LM, name: str) -> None:
    token_id = lm.tokenizer.eos_id if name == "eos_id" else lm.tokenizer.id_of("<end_of_turn>")
    assert token_id is not None
    sampling = Sampling(temperature=0.0, logit_bias={token_id: 1000.0})
    completion = lm.generate("the", sampling=sampling)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", (token_id,), "stop")


def test_a_stop_string_ends_the_text_before_it(lm: LM) -> None:
    text = open_ended(lm).generate(PROMPTS[0], seed=8, max_new_tokens=40).text
    stop = text[10:13]
    completion = open_ended(lm).generate(PROMPTS[0], seed=8, max_new_tokens=40, stop=["never this", stop])
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"
    assert completion.n_tokens < 40


def test_the_end_of_the_context_is_a_length(lm: LM) -> None:
    prompt = [lm.tokenizer.bos_id] + [300] * (lm.config.max_seq_len - 6)
    completion = open_ended(lm).generate(prompt, max_new_tokens=100, seed=1)
    assert (completion.n_tokens, completion.finish_reason) == (5, "length")
    assert list(completion.token_ids) == slow_completion(lm, prompt, replace(lm.sampling, seed=1), 5)


def test_logprobs_are_the_networks_own_whatever_the_sampling(lm: LM) -> None:
    sampling = Sampling(temperature=0.5, top_k=20, repetition_penalty=1.5, logit_bias={301: 5.0}, seed=1)
    completion = lm.generate(PROMPTS[0], sampling=sampling, max_new_tokens=10, top_logprobs=3)
    prompt = [lm.tokenizer.bos_id, *lm.tokenizer.encode(PROMPTS[0])]
    with torch.inference_mode():
        logits = lm.network(torch.tensor([[*prompt, *completion.token_ids[:-1]]]))[0, len(prompt) - 1 :]
    expected = logits.log_softmax(-1)
    assert completion.logprobs is not None
    assert completion.top_logprobs is not None
    chosen = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logprobs), chosen, atol=1e-4, rtol=0)
    for row, best in zip(expected, completion.top_logprobs, strict=True):
        values, token_ids = row[: lm.tokenizer.vocab_size].topk(3)
        assert [token_id for token_id, _ in best] == token_ids.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in best]), values, atol=1e-4, rtol=0)


def test_logprobs_are_not_computed_unless_asked_for(lm: LM) -> None:
    completion = lm.generate("the", max_new_tokens=2)
    assert completion.logprobs is completion.top_logprobs is None
    chosen_only = lm.generate("the", max_new_tokens=2, top_logprobs=0)
    assert chosen_only.logprobs is not None
    assert chosen_only.top_logprobs is not None
    assert [len(best) for best in chosen_only.top_logprobs] == [0] * chosen_only.n_tokens


def test_rows_of_the_embedding_without_a_piece_are_never_chosen(tokenizer: Tokenizer) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size + 8)
    with torch.no_grad():
        network.embed_tokens.weight[tokenizer.vocab_size :] = 50 * network.embed_tokens.weight[300]
        network.embed_tokens.weight[-4:] *= -1
    lm = open_ended(LM(network, tokenizer))
    junk = network(torch.tensor([[2, 300]]))[0, -1].argmax()
    assert junk >= tokenizer.vocab_size  # greedy over all rows would take it
    for temperature in (0.0, 1.0):
        for completion in lm.generate(["the", "fox"], temperature=temperature, max_new_tokens=20, top_logprobs=5):
            assert max(completion.token_ids) < tokenizer.vocab_size
            assert completion.top_logprobs is not None
            assert max(i for best in completion.top_logprobs for i, _ in best) < tokenizer.vocab_size


def test_times_are_told(lm: LM) -> None:
    completion = open_ended(lm).generate("the", max_new_tokens=5)
    assert completion.ttft_s is not None
    assert completion.tokens_per_s is not None
    assert 0 < completion.ttft_s < completion.total_s
    assert completion.tokens_per_s == pytest.approx(4 / (completion.total_s - completion.ttft_s))
    assert lm.generate("the", max_new_tokens=1).tokens_per_s is None


def test_an_event_set_before_the_call_cancels_it_with_nothing_written(lm: LM) -> None:
    event = threading.Event()
    event.set()
    completion = lm.generate("the", cancel=event)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", (), "cancelled")
    assert completion.ttft_s is None


def after(n_calls: int) -> Callable[[], bool]:
    answers = iter([False] * n_calls + [True] * 1000)
    return lambda: next(answers)


def test_a_function_cancels_between_two_tokens(lm: LM) -> None:
    lm = open_ended(lm)
    whole = lm.generate("the", seed=1, max_new_tokens=20)
    cut = lm.generate("the", seed=1, max_new_tokens=20, cancel=after(6))
    assert cut.finish_reason == "cancelled"
    assert cut.token_ids == whole.token_ids[:5]  # one of the six questions came before the prompt was read
    assert whole.text.startswith(cut.text)


def test_a_long_prompt_can_be_cancelled_while_it_is_read(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "PREFILL_CHUNK", 4)
    completion = lm.generate(PROMPTS[2], cancel=after(3))
    assert (completion.token_ids, completion.finish_reason) == ((), "cancelled")


def test_weights_that_are_not_numbers_are_named_not_sampled(tokenizer: Tokenizer) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        network.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"logits must be finite; got nan"):
        LM(network, tokenizer).generate("the")


def test_an_empty_prompt_is_refused_with_the_reason(lm: LM) -> None:
    with pytest.raises(PromptError, match=r"prompt must hold text; got ''\. The model continues what it is given"):
        lm.generate("")
    with pytest.raises(PromptError, match=r"at least one turn or token id; got \[\]"):
        lm.generate([])
    with pytest.raises(PromptError, match=r"prompt must hold text; got ''"):
        lm.generate(["the", ""])


@pytest.mark.parametrize("n_over", [0, 1, 40])
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(lm: LM, n_over: int) -> None:
    limit = lm.config.max_seq_len
    with pytest.raises(PromptError, match=rf"context of {limit} tokens.*got {limit + n_over} tokens"):
        lm.generate([2] + [300] * (limit - 1 + n_over))


@pytest.mark.parametrize("token_id", [-1, 568])
def test_an_id_without_a_row_is_refused(lm: LM, token_id: int) -> None:
    with pytest.raises(PromptError, match=rf"ids below 568; got {token_id} in it"):
        lm.generate([2, token_id])


REFUSED = [
    ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1; got 0"),
    ({"max_new_tokens": -5}, "max_new_tokens must be an integer of at least 1; got -5"),
    ({"n": 0}, "n must be an integer of at least 1; got 0"),
    ({"first_index": -1}, "first_index must be an integer of at least 0; got -1"),
    ({"temperature": float("nan")}, "temperature must be a number of at least 0; got nan"),
    ({"top_k": 0}, "top_k must be an integer of at least 1; got 0"),
    ({"top_p": 1.5}, "top_p must lie above 0 and up to 1; got 1.5"),
    ({"top_logprobs": -1}, "top_logprobs must be an integer of at least 0; got -1"),
    ({"stop": ""}, "stop must hold texts that are not empty; got ''"),
    ({"stop": ["a", ""]}, "stop must hold texts that are not empty; got ''"),
    ({"stop_ids": [99_999]}, "stop_ids must hold ids of the 560 pieces of the vocabulary; got 99999"),
    ({"sampling": Sampling(logit_bias={565: 1.0})}, "logit_bias must hold ids of the 560 pieces"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda x: str(x))
def test_a_wrong_setting_is_refused_before_anything_runs(lm: LM, options: dict, message: str) -> None:
    with pytest.raises(SamplingError) as caught:
        lm.generate("the", **options)
    assert str(caught.value).startswith(message)


def test_an_unknown_keyword_is_named(lm: LM) -> None:
    with pytest.raises(TypeError, match="no keyword 'max_tokens'"):
        lm.generate("the", max_tokens=3)  # pyright: ignore[reportCallIssue]


def test_memory_asked_for_is_that_of_the_cache_chosen(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    n_tokens = {"int8": 12 + 4, None: 12 * 4}  # bytes of a vector of 12 numbers
    found = {}
    for dtype in n_tokens:
        small = LM(lm.network, lm.tokenizer, cache_dtype=dtype)
        monkeypatch.setattr(generate_module, "available_bytes", lambda device: 10)
        with pytest.raises(MemoryLimitError):
            small.generate("the", max_new_tokens=20)
        monkeypatch.undo()
        generation = small.stream("the", max_new_tokens=20)._generation
        found[dtype] = generation._make_cache().n_bytes
    assert found["int8"] * n_tokens[None] == found[None] * n_tokens["int8"]
