"""tokenizer_config.json: what other programs do not see in tokenizer.model, the <bos> in front and the turns.

Without it transformers, and vLLM with its tokenizer, put no <bos> before a text.
"""

from typing import Any

from gemsmith.chat import END_OF_TURN, START_OF_TURN
from gemsmith.tokenizer import Tokenizer
from gemsmith.vocabulary.model_file import CONTROL, UNKNOWN, USER_DEFINED

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

# The conversation `chat.compile_chat` writes, as the Jinja text other programs run.
CHAT_TEMPLATE = """\
{%- set lead = '' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set turns = messages[1:] -%}
{%- if messages[0]['content'] | trim -%}
{%- set lead = messages[0]['content'] + '\\n\\n' -%}
{%- endif -%}
{%- endif -%}
{{ bos_token }}
{%- for turn in turns -%}
{%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}
{%- set before = lead if loop.first else '' -%}
{{ '<start_of_turn>' + role + '\\n' + before + (turn['content'] | trim) + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def render_tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a tokenizer_config.json.

    Every piece that is cut out of a text as it stands is listed: where there is such a file, transformers takes them
    from nowhere else, and would cut runs of line breaks as it cuts words.
    """
    raw: dict[str, Any] = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token_id): _added(piece.text, is_special=token_id in tokenizer.control_ids)
            for token_id, piece in tokenizer.specials().items()
            if piece.kind in (CONTROL, UNKNOWN, USER_DEFINED)
        },
    }
    template = chat_template(tokenizer)
    if template is not None:
        raw |= {"additional_special_tokens": [START_OF_TURN, END_OF_TURN], "chat_template": template}
    return raw


def _added(text: str, *, is_special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **flags, "special": is_special}


def chat_template(tokenizer: Tokenizer) -> str | None:
    """Return the template of conversations, None for a vocabulary that cannot mark turns."""
    has_turns = all(tokenizer.id_of(mark) is not None for mark in (START_OF_TURN, END_OF_TURN))
    return CHAT_TEMPLATE if has_turns else None
