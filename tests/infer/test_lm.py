"""The public face: streaming, conversations, scores, saving."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import gemsmith.infer.generate as generate_module
import gemsmith.infer.score as score_module
from gemsmith.chat import Turn
from gemsmith.errors import ChatError, CheckpointError, ConfigError, PromptError, TokenizerError
from gemsmith.infer.generate import Row
from gemsmith.infer.lm import LM
from gemsmith.infer.load import load
from gemsmith.infer.sample import Sampling
from gemsmith.kernels import native
from gemsmith.kernels.decode_step import DecodeStep
from gemsmith.model.cache import KVCache
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.folder import load_network, save_folder
from tiny import tiny_network

TEXT = "seven small cats sing about warm rain and old trees while the lazy dog jumps over the quick brown fox."
TURNS = [
    Turn("user", "the quick fox"),
    Turn("model", "sing about rain"),
    Turn("user", "old trees"),
    Turn("model", "warm"),
]


@pytest.mark.parametrize("stop", [(), ("e", "s a"), ("\n",)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_streamed_pieces_join_to_the_generated_text(lm: LM, seed: int, stop: tuple[str, ...]) -> None:
    whole = lm.generate("the", seed=seed, max_new_tokens=40, stop=stop)
    stream = lm.stream("the", seed=seed, max_new_tokens=40, stop=stop)
    assert "".join(stream) == whole.text == stream.completion.text
    assert stream.completion.token_ids == whole.token_ids
    assert stream.completion.finish_reason == whole.finish_reason


def test_a_stream_reads_nothing_before_it_is_asked_but_refuses_at_once(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match="got ''"):
        lm.stream("")
    monkeypatch.setattr(type(lm.network), "hidden", None)
    lm.stream("the")


def test_a_stream_that_is_left_early_is_cancelled(lm: LM) -> None:
    with lm.stream(
        "the", seed=1, max_new_tokens=50, sampling=Sampling(logit_bias={1: -1000.0, 107: -1000.0})
    ) as stream:
        first = next(stream)
    assert stream.completion.finish_reason == "cancelled"
    assert stream.completion.text.startswith(first)
    assert 0 < stream.completion.n_tokens < 50
    assert list(stream) in ([], [stream.completion.text[len(first) :]])
    stream.close()
    assert stream.completion.finish_reason == "cancelled"


def test_a_stream_whose_prompt_cannot_be_read_has_ended(tokenizer: Tokenizer) -> None:
    network = tiny_network(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        network.norm.weight[0] = float("nan")
    stream = LM(network, tokenizer).stream("the")
    with pytest.raises(CheckpointError, match="got nan"):
        next(stream)
    assert list(stream) == []
    assert (stream.completion.token_ids, stream.completion.finish_reason) == ((), "cancelled")


@pytest.mark.parametrize("place", ["_check_finite", "decode_step", "History"])
def test_a_stream_interrupted_while_it_reads_the_prompt_has_ended(
    lm: LM, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = lm.stream("the", sampling=Sampling(repetition_penalty=1.1))
    monkeypatch.setattr(generate_module, place, interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.undo()
    assert list(stream) == []
    assert stream.completion.finish_reason == "cancelled"


@pytest.mark.parametrize(
    ("owner", "name", "is_compiled"),
    [
        (KVCache, "reserve", True),
        (KVCache, "reserve", False),
        (Transformer, "logits", False),
        pytest.param(
            DecodeStep, "__call__", True, marks=pytest.mark.skipif(not native.is_loaded(), reason="no library")
        ),
        (Row, "add", True),
    ],
)
def test_a_stream_interrupted_between_two_tokens_has_ended(
    lm: LM, owner: type, name: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(generate_module, "decode_step", lambda *_, **__: None)
    stream = lm.stream("the", seed=1, max_new_tokens=50, top_logprobs=1)
    pieces, real = [next(stream)], getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *a, **k: interrupt(real(*a, **k)))
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    pieces += list(stream)
    found = stream.completion
    assert found.finish_reason == "cancelled"
    assert "".join(pieces) == found.text
    assert found.logprobs is not None
    assert found.top_logprobs is not None
    assert len(found.token_ids) == len(found.logprobs) == len(found.top_logprobs) > 0


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_before_its_token_takes_the_logprob_back(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lm.stream("the", seed=1, top_logprobs=1)
    monkeypatch.setattr(Row, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert (stream.completion.token_ids, stream.completion.logprobs) == ((), ())
    assert stream.completion.top_logprobs == ()


def test_an_error_leaves_finished_rows_as_they_are(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = lm._generation(["the", "a"], None, {"max_new_tokens": 1})
    real = Row.add

    def add(row: Row, *arguments: object) -> None:
        real(row, *arguments)  # pyright: ignore[reportArgumentType]
        if row.finish_reason is not None:
            raise MemoryError

    monkeypatch.setattr(Row, "add", add)
    with pytest.raises(MemoryError):
        generation.step()
    assert [row.finish_reason for row in generation.rows] == ["length", "cancelled"]
    assert generation.run()[0].finish_reason == "length"


def test_a_finished_stream_stays_finished_when_closed(lm: LM) -> None:
    stream = lm.stream("the", max_new_tokens=3)
    text = "".join(stream)
    before = stream.completion
    stream.cancel()
    assert stream.completion == before
    assert before.text == text
    assert before.finish_reason in ("length", "stop")


def test_turns_are_compiled_with_the_answer_open(lm: LM) -> None:
    turns = TURNS[:3]
    compiled = [*lm.chat_ids(turns).token_ids, *answer_head(lm.tokenizer)]
    by_turns = lm.generate(turns, seed=1, max_new_tokens=8)
    by_ids = lm.generate(compiled, seed=1, max_new_tokens=8)
    assert by_turns.token_ids == by_ids.token_ids
    assert by_turns.n_prompt_tokens == len(compiled)
    assert compiled.count(lm.tokenizer.bos_id) == 1


def answer_head(tokenizer: Tokenizer) -> list[int]:
    start = tokenizer.id_of("<start_of_turn>")
    assert start is not None
    return [start, *tokenizer.encode("model\n")]


def test_texts_conversations_and_ids_can_share_a_call(lm: LM) -> None:
    prompts = ["the", TURNS[:1], [2, 300, 301]]
    together = lm.generate(prompts, seed=1, max_new_tokens=6)
    assert [c.token_ids for c in together] == [lm.generate(p, seed=1, max_new_tokens=6).token_ids for p in prompts]


def test_a_conversation_that_ends_with_the_model_cannot_be_answered(lm: LM) -> None:
    with pytest.raises(ChatError, match="got a model turn"):
        lm.generate(TURNS)


def slow_logprobs(lm: LM, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return lm.network(torch.tensor([token_ids]))[0].double().log_softmax(-1)


def test_a_text_is_scored_as_by_one_pass_over_all_logits(lm: LM) -> None:
    score = lm.score(TEXT)
    token_ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(TEXT)]
    assert list(score.token_ids) == token_ids
    assert list(score.places) == list(range(1, len(token_ids)))
    expected = slow_logprobs(lm, token_ids)[:-1].gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(score.logprobs).double(), expected, atol=1e-4, rtol=0)
    assert score.nll == pytest.approx(-expected.mean().item(), abs=1e-5)
    assert score.ppl == pytest.approx(math.exp(score.nll))
    assert score.bpb == pytest.approx(-sum(score.logprobs) / math.log(2) / len(TEXT))


def test_of_a_conversation_the_models_words_and_their_terminator_are_scored(lm: LM) -> None:
    score, chat = lm.score(TURNS), lm.chat_ids(TURNS)
    scored = [score.token_ids[place] for place in score.places]
    end = lm.tokenizer.id_of("<end_of_turn>")
    assert scored == [*lm.tokenizer.encode("sing about rain"), end, *lm.tokenizer.encode("warm"), end]
    expected = slow_logprobs(lm, chat.token_ids)
    for place, logprob in zip(score.places, score.logprobs, strict=True):
        assert logprob == pytest.approx(expected[place - 1, chat.token_ids[place]].item(), abs=1e-4)
    assert score.bpb is None


def test_ids_are_scored_as_they_are(lm: LM) -> None:
    token_ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(TEXT)]
    assert lm.score(token_ids).logprobs == lm.score(TEXT).logprobs


def test_generated_logprobs_equal_those_of_scoring(lm: LM) -> None:
    completion = lm.generate("the quick", seed=4, max_new_tokens=30, top_logprobs=0)
    prompt = [lm.tokenizer.bos_id, *lm.tokenizer.encode("the quick")]
    score = lm.score([*prompt, *completion.token_ids])
    assert completion.logprobs == pytest.approx(score.logprobs[len(prompt) - 1 :], abs=1e-4)


def test_neither_chunks_of_text_nor_of_the_head_change_a_score(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lm.score(TEXT).logprobs
    monkeypatch.setattr(score_module, "PREFILL_CHUNK", 7)
    monkeypatch.setattr(score_module, "_HEAD_NUMBERS", 3 * lm.config.vocab_size + 1)
    sizes = []
    logits = type(lm.network).logits
    monkeypatch.setattr(type(lm.network), "logits", lambda self, x: (sizes.append(len(x)), logits(self, x))[1])
    assert lm.score(TEXT).logprobs == pytest.approx(whole, abs=1e-4)
    assert max(sizes) == 3


def test_a_text_as_long_as_the_context_can_be_scored_and_no_longer(lm: LM) -> None:
    limit = lm.config.max_seq_len
    assert lm.score([2] + [300] * (limit - 1)).n_scored == limit - 1
    with pytest.raises(PromptError, match=rf"context of {limit} tokens; got {limit + 1} tokens"):
        lm.score([2] + [300] * limit)


@pytest.mark.parametrize(("text", "shown"), [("", "''"), ([2], r"\[2\]"), ([], r"\[\]"), (TURNS[:1], "the quick fox")])
def test_a_text_without_anything_to_score_is_refused(lm: LM, text: object, shown: str) -> None:
    with pytest.raises(PromptError, match=f"got .*{shown}"):
        lm.score(text)  # pyright: ignore[reportArgumentType]


def test_a_tokenizer_of_another_model_is_refused(lm: LM) -> None:
    with pytest.raises(TokenizerError, match="560 pieces for 300 rows"):
        LM(tiny_network(), lm.tokenizer)


def test_a_model_says_what_it_is(lm: LM) -> None:
    assert repr(lm) == "LM('tiny', 0.1M parameters, torch.float32, cpu)"


def test_the_network_is_a_plain_module(lm: LM) -> None:
    assert lm.network(torch.tensor([[2, 300, 301]])).shape == (1, 3, lm.config.vocab_size)


def test_a_network_that_has_written_can_still_be_trained(tokenizer: Tokenizer) -> None:
    lm = LM(tiny_network(vocab_size=tokenizer.vocab_size), tokenizer)
    lm.generate("the", max_new_tokens=3)
    lm.score("the quick")
    lm.network(torch.tensor([[2, 300, 301]])).square().mean().backward()
    assert all(parameter.grad is not None for parameter in lm.network.parameters())


def test_calls_in_several_threads_do_not_mix(lm: LM) -> None:
    def write(seed: int) -> tuple[int, ...]:
        return lm.generate("the", seed=seed, max_new_tokens=15).token_ids

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(write, range(4)))
    assert together == [write(seed) for seed in range(4)]


def test_a_model_loaded_in_its_fastest_form_saves_what_it_read(lm: LM, tmp_path: Path) -> None:
    first = save_folder(tmp_path / "first", lm.network, tokenizer=lm.tokenizer, dtype="bfloat16")
    again = load(first, device="cpu", dtype="bfloat16")
    again.generate("the", max_new_tokens=2)
    again.save(tmp_path / "second")
    kept, read = (load_network(tmp_path / name).network.state_dict() for name in ("second", "first"))
    assert kept.keys() == read.keys()
    assert all(kept[name].equal(read[name]) for name in read)


def test_saving_keeps_weights_vocabulary_and_manners(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "mine")
    again = load(tmp_path / "mine")
    assert again.sampling == lm.sampling
    assert again.stop_ids == lm.stop_ids
    assert again.tokenizer.encode(TEXT) == lm.tokenizer.encode(TEXT)
    assert again.generate("the", seed=1, max_new_tokens=10).text == lm.generate("the", seed=1, max_new_tokens=10).text


def test_an_int8_cache_writes_nearly_as_probable_texts(lm: LM, tokenizer: Tokenizer) -> None:
    small = LM(lm.network, tokenizer, cache_dtype="int8")
    assert small.cache_dtype == torch.int8
    exact, rounded = (m.score("the quick brown fox jumps").logprobs for m in (lm, small))
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.1)
    first, again = (small.generate("the fox", n=2, max_new_tokens=12, seed=5) for _ in range(2))
    assert [c.token_ids for c in first] == [c.token_ids for c in again]


@pytest.mark.parametrize("n_tokens", [3, 9, 19])
@pytest.mark.parametrize(("dtype", "cache_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_cache_may_have_another_dtype_than_the_network(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, dtype: str, cache_dtype: str, n_tokens: int
) -> None:
    for module in (generate_module, score_module):
        monkeypatch.setattr(module, "PREFILL_CHUNK", 16)
    network = tiny_network("gemma2", vocab_size=tokenizer.vocab_size).to(getattr(torch, dtype))
    seeded = torch.Generator().manual_seed(n_tokens)  # over 60 draws the largest difference was 0.054
    token_ids = [2, *torch.randint(300, 400, (n_tokens - 1,), generator=seeded).tolist()]
    plain, other = LM(network, tokenizer), LM(network, tokenizer, cache_dtype=cache_dtype)
    assert other.score(token_ids).logprobs == pytest.approx(plain.score(token_ids).logprobs, abs=0.05)
    assert len(other.generate(token_ids, max_new_tokens=3, temperature=0.0).token_ids) > 0


def test_caches_of_other_dtypes_are_refused(lm: LM, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="cache_dtype must be int8, bfloat16 or float32; got 'int4'"):
        LM(lm.network, tokenizer, cache_dtype="int4")
