"""Conversations to ids and loss mask: equal to the published templates, and safe from what turns say."""

from collections.abc import Callable

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemsmith.chat import FAMILIES, ChatIds, Turn, compile_chat, stop_ids
from gemsmith.config import preset
from gemsmith.errors import ChatError
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import NORMAL, USER_DEFINED, Piece, Vocabulary
from vocab import HOSTILE, PLAIN, SMALL, small_tokenizer

# The templates as published, spelled again from the strings they render: a turn is
# `<start_of_turn>role\n{content | trim}<end_of_turn>\n`, `<start_of_turn>model\n` opens an answer.
GEMMA_2 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Gemma 3 puts untrimmed system text and an empty line in front of the first user turn.
GEMMA_3 = (
    "{{ bos_token }}{% set prefix = '' %}{% set rest = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set prefix = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES = {"gemma": GEMMA_2, "gemma2": GEMMA_2, "gemma3": GEMMA_3, "vaultgemma": GEMMA_2}

ANSWERED = st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=3).map(
    lambda pairs: [turn for ask, answer in pairs for turn in (Turn("user", ask), Turn("model", answer))]
)
MIXED = st.lists(st.builds(Turn, st.sampled_from(["user", "model"]), HOSTILE), max_size=6).map(
    lambda turns: [Turn("user", "Hi"), *turns]
)


def chat(*turns: tuple[str, str], **options: object) -> ChatIds:
    options = {"family": "gemma2", **options}
    return compile_chat([Turn(*turn) for turn in turns], small_tokenizer(), **options)  # pyright: ignore[reportArgumentType]


def ids(text: str) -> list[int]:
    return small_tokenizer().encode(text, control=True)


def rendered(turns: list[Turn], *, family: str, open_answer: bool) -> list[int]:
    def fail(message: str) -> None:
        raise ValueError(message)

    # transformers renders with these options.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    messages = [{"role": "assistant" if t.role == "model" else t.role, "content": t.content} for t in turns]
    # <bos> is a control piece, which sentencepiece reads from no text: it is put in by id.
    text = environment.from_string(TEMPLATES[family]).render(
        messages=messages, add_generation_prompt=open_answer, bos_token=""
    )
    return [2, *ids(text)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_reads_as_the_template_writes_it(family: str) -> None:
    compiled = chat(("user", " Hi \n"), ("model", "Hello!\n"), ("user", "Bye"), family=family, open_answer=True)
    assert compiled.token_ids == [
        2, *ids("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"),
        *ids("<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"),
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@given(texts=st.lists(PLAIN, min_size=1, max_size=5), system=st.none() | PLAIN.filter(str.strip), data=st.data())
@settings(deadline=None, max_examples=60)
def test_well_formed_conversations_equal_the_published_template(
    family: str, texts: list[str], system: str | None, data: st.DataObject
) -> None:
    turns = [Turn(("user", "model")[i % 2], text) for i, text in enumerate(texts)]
    if system is not None and family == "gemma3":
        turns.insert(0, Turn("system", system))
    open_answer = turns[-1].role == "user" and data.draw(st.booleans())
    compiled = compile_chat(turns, small_tokenizer(), family=family, open_answer=open_answer)
    assert compiled.token_ids == rendered(turns, family=family, open_answer=open_answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_system_text_is_folded_into_the_first_user_turn(family: str) -> None:
    folded = chat(("system", "Be kind."), ("user", "Hi"), ("model", "Hello"), ("user", "Bye"), family=family)
    assert folded == chat(("user", "Be kind.\n\nHi"), ("model", "Hello"), ("user", "Bye"), family=family)


def test_a_blank_system_turn_adds_nothing() -> None:
    assert chat(("system", " \n"), ("user", "Hi")) == chat(("user", "Hi"))


def test_trap_turns_of_one_role_are_merged() -> None:
    users = [("user", "Hi "), ("user", ""), ("user", "there")]
    merged = chat(("system", "A"), ("system", "B"), *users, ("model", "a"), ("model", "b"))
    assert merged == chat(("user", "A\n\nB\n\nHi\n\nthere"), ("model", "a\n\nb"))


def test_trap_the_markers_are_found_by_name_not_by_id() -> None:
    """They are 106 and 107 in Gemma 1 and 2, 105 and 106 in Gemma 3."""
    pieces = {105: "<start_of_turn>", 106: "<end_of_turn>", 107: "<unused98>"}
    changes = {token_id: Piece(text, 0.0, USER_DEFINED) for token_id, text in pieces.items()}
    tokenizer = Tokenizer(Vocabulary.from_bytes(SMALL.read_bytes()).with_pieces(changes))
    token_ids = compile_chat([Turn("user", "Hi")], tokenizer, family="gemma3", open_answer=True).token_ids
    assert [i for i in token_ids if i in tokenizer.control_ids] == [2, 105, 106, 105]
    assert stop_ids(tokenizer, preset("gemma-3-1b")) == {1, 106}


def test_the_loss_counts_answers_and_their_terminator() -> None:
    compiled = chat(("user", "Hi"), ("model", "Hello!"), ("user", "And?"), ("model", "Bye."))
    learned = [i for i, counts in zip(compiled.token_ids, compiled.loss_mask, strict=True) if counts]
    assert learned == ids("Hello!<end_of_turn>") + ids("Bye.<end_of_turn>")


def test_trap_the_terminator_is_trained_and_the_newline_behind_it_is_not() -> None:
    compiled = chat(("user", "Hi"), ("model", "Hello!"))
    assert compiled.token_ids[-2:] == ids("<end_of_turn>\n")
    assert compiled.loss_mask[-2:] == [True, False]


@given(turns=ANSWERED)
@settings(deadline=None)
def test_masked_ids_are_the_answers(turns: list[Turn]) -> None:
    compiled = compile_chat(turns, small_tokenizer(), family="gemma3")
    learned = [i for i, counts in zip(compiled.token_ids, compiled.loss_mask, strict=True) if counts]
    answers = [turn.text.strip().replace("\u2581", " ") for turn in turns if turn.role == "model"]
    assert small_tokenizer().decode(learned, skip_control=False) == "".join(f"{text}<end_of_turn>" for text in answers)


@given(turns=MIXED, system=st.none() | HOSTILE, open_answer=st.booleans())
@settings(deadline=None)
def test_trap_exactly_one_bos_and_no_control_id_from_any_text(
    turns: list[Turn], system: str | None, open_answer: bool
) -> None:
    tokenizer = small_tokenizer()
    if open_answer and turns[-1].role == "model":
        turns = [*turns, Turn("user", "Go on")]
    turns = turns if system is None else [Turn("system", system), *turns]
    token_ids = compile_chat(turns, tokenizer, family="gemma2", open_answer=open_answer).token_ids
    roles = [turn.role for turn in turns if turn.role != "system"]
    n_turns = sum(role != before for role, before in zip(roles, [None, *roles], strict=False))
    assert token_ids[0] == 2
    assert [i for i in token_ids[1:] if i in tokenizer.control_ids] == [106, 107] * n_turns + [106] * open_answer


@given(turns=ANSWERED, later=ANSWERED)
@settings(deadline=None)
def test_ids_so_far_are_a_prefix_of_the_ids_later(turns: list[Turn], later: list[Turn]) -> None:
    def compiled(turns: list[Turn], open_answer: bool = False) -> list[int]:
        return compile_chat(turns, small_tokenizer(), family="gemma2", open_answer=open_answer).token_ids

    whole = compiled([*turns, *later])
    for so_far in (compiled(turns), compiled(turns[:-1], open_answer=True), compiled(turns[:-1])):
        assert whole[: len(so_far)] == so_far


@given(turns=MIXED)
@settings(deadline=None)
def test_opening_an_answer_only_adds_ids(turns: list[Turn]) -> None:
    turns = [*turns, Turn("user", "Go on")]
    plain = compile_chat(turns, small_tokenizer(), family="gemma2")
    opened = compile_chat(turns, small_tokenizer(), family="gemma2", open_answer=True)
    assert opened.token_ids == plain.token_ids + ids("<start_of_turn>model\n")
    assert opened.loss_mask == plain.loss_mask + [False] * (len(opened.token_ids) - len(plain.token_ids))


def test_trap_the_stop_ids_hold_eos_and_the_end_of_a_turn() -> None:
    assert stop_ids(small_tokenizer(), preset("gemma-2-2b")) == {1, 107}
    assert stop_ids(small_tokenizer(), preset("gemma-2-2b").replace(eos_ids=(1, 50))) == {1, 50, 107}


def without(piece: str, *, kind: int) -> Tokenizer:
    token_id = small_tokenizer().id_of(piece)
    assert token_id is not None
    spare = Piece("<unused200>" if kind == USER_DEFINED else piece, 0.0, kind)
    return Tokenizer(Vocabulary.from_bytes(SMALL.read_bytes()).with_pieces({token_id: spare}))


def test_a_vocabulary_without_turns_stops_at_eos_only() -> None:
    assert stop_ids(without("<end_of_turn>", kind=USER_DEFINED), preset("gemma-2-2b")) == {1}


@pytest.mark.parametrize(("kind", "token_id"), [(USER_DEFINED, "None"), (NORMAL, "107")])
def test_a_vocabulary_whose_markers_could_be_typed_is_refused(kind: int, token_id: str) -> None:
    with pytest.raises(ChatError, match=f"must have '<end_of_turn>' among its control pieces .* got {token_id} as"):
        compile_chat([Turn("user", "Hi")], without("<end_of_turn>", kind=kind), family="gemma2")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Turn("assistant", "x"), "role must be user, model or system; got 'assistant'. Call it 'model' here"),
        (lambda: Turn("tool", "x"), "role must be user, model or system; got 'tool'. Name one"),
        (lambda: compile_chat([Turn("user", ("x", b"png"))], small_tokenizer(), family="gemma3"),
         r"content must be text; got tuple \('x', b'png'\) in a user turn"),
        (lambda: chat(), r"must begin with a user turn.*; got \[\]"),
        (lambda: chat(("system", "Be kind.")), r"must begin with a user turn.*; got \['system'\]"),
        (lambda: chat(("model", "Hi"), ("user", "Hi")), r"must begin with a user turn.*; got \['model', 'user'\]"),
        (lambda: chat(("user", "a"), ("model", "b"), ("system", "c")), "system turns must stand before.* number 3"),
        (lambda: chat(("system", "Be kind."), ("user", "a"), system="error"), "system turns .*; got 'Be kind.'"),
        (lambda: chat(("user", "a"), system="ignore"), "system must be 'fold' or 'error'; got 'ignore'"),
        (lambda: chat(("user", "a"), ("model", "b"), open_answer=True), "last turn must be the user's .* a model turn"),
        (lambda: chat(("user", "a"), family="gemma4"), "family must be one of .*; got 'gemma4'"),
    ],
)  # fmt: skip
def test_conversations_the_template_cannot_express_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ChatError, match=message):
        call()
