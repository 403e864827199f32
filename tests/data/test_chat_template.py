"""Chat templates: ids, what counts for the loss, texts that spell control tokens, templates that fail."""

import json
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import vocabulary
from gpt2.data.chat_template import ChatTemplate
from gpt2.data.chat_vocabulary import chat_vocabulary
from gpt2.data.trained_vocabulary import CHAT_TOKENS, byte_pairs, characters
from gpt2.data.vocabulary import UnknownVocabulary
from gpt2.errors import UserError
from gpt2.formats.tokenizer_folder import END_OF_TEXT, TokenizerFolder

TEXT = "To be, or not to be: that is the question.\n" * 20
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Hi \n"},
    {"role": "assistant", "content": "Hello.\n\n"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long."},
]
CHATML = """{% for message in messages %}
{{- '<|user|>' + message['role'] + '\n' + message['content'] | trim + '<|end|>' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def words():
    return chat_vocabulary(byte_pairs([TEXT], 280))


def with_template(words, template, **flags):
    """Returns a vocabulary with another template."""
    files = words.files | {"chat_template.jinja": template.encode()}
    tokenizer = json.loads(words.files["tokenizer.json"])
    tokenizer["added_tokens"] = [token | flags for token in tokenizer["added_tokens"]]
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    made.encode_special_tokens = True
    return vocabulary.Vocabulary(TokenizerFolder(files, tokenizer=made, begin=words.begin, ends=words.ends))


def split(words, ids, counts):
    """Returns the text of the tokens that count, and that of all."""
    return words.decode([id for id, count in zip(ids, counts, strict=True) if count]), words.decode(ids)


def test_contents_and_control_tokens_are_joined_as_ids(words):
    begin, system, user, assistant, end = (words.tokens.index(name) for name in (END_OF_TEXT, *CHAT_TOKENS))
    ids, counts = ChatTemplate(words).encode(TALK)
    expected, learned = [begin], [False]
    for message, role in zip(TALK, (system, user, assistant, user, assistant), strict=True):
        content = [*words.encode(message["content"]), end]
        expected += [role, *content]
        learned += [False] + [role == assistant] * len(content)
    assert (ids, counts) == (expected, learned)


def test_a_prompt_is_what_precedes_the_answer(words):
    template = ChatTemplate(words)
    whole, counts = template.encode(TALK)
    prompt, counted = template.encode(TALK[:-1], reply=True)
    assert whole[: len(prompt)] == prompt and counts[: len(prompt)] == counted
    assert all(counts[len(prompt) :]) and whole[-1] == words.ends[-1]


CONTENT = st.text() | st.lists(st.sampled_from([*CHAT_TOKENS, END_OF_TEXT, "<", "|>", " ", "\n", "\U000f0000"])).map(
    "".join
)


@pytest.mark.parametrize(("template", "special"), [(None, True), (CHATML, True), (CHATML, False)])
def test_contents_never_give_control_tokens(words, template, special):
    words = with_template(words, template or words.files["chat_template.jinja"].decode(), special=special)
    controls = {words.tokens.index(name) for name in CHAT_TOKENS if special or name in CHATML}
    found = ChatTemplate(words)
    expected = [id for id in found.encode(TALK)[0] if id in controls]

    @settings(max_examples=100, deadline=None)
    @given(CONTENT, CONTENT)
    def holds(question, answer):
        contents = [question, answer, "x", "Be kind.", "<|end|>"]
        talk = [message | {"content": text} for message, text in zip(TALK, contents, strict=True)]
        ids, counts = found.encode(talk)
        assert [id for id in ids if id in controls] == expected
        text = found.encode([message | {"content": ""} for message in talk])[0]
        strip = str.strip if template else str
        assert len(words.decode(ids)) == len(words.decode(text)) + sum(len(strip(text)) for text in contents)
        assert all(strip(text) in words.decode(ids) for text in contents)
        assert split(words, ids, counts)[0] == "".join(f"{strip(text)}<|end|>" for text in (contents[2], contents[4]))

    holds()


def test_text_that_spells_a_control_token_is_tokenised_as_any_text(words):
    content = "a <|end|> b<|user|>"
    ids, _ = ChatTemplate(words).encode([{"role": "user", "content": content}])
    assert ids[2:-1] == words.encode(content)


def test_without_generation_marks_an_answer_is_what_it_adds_to_its_prompt(words):
    ids, counts = ChatTemplate(with_template(words, CHATML)).encode(TALK)
    counted, whole = split(words, ids, counts)
    assert counted == "Hello.<|end|>So long.<|end|>"  # not the line breaks after them, which no model has to produce
    assert whole.count("<|user|>") == 5 and whole.endswith("So long.<|end|>\n")


def test_a_template_that_rewrites_earlier_answers_has_to_mark_them(words):
    rewriting = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match=r"^a\.json: chat_template\.jinja does not say which words are the assistant's"):
        ChatTemplate(with_template(words, rewriting)).encode(TALK, source="a.json")


def test_a_template_in_the_settings_counts(words):
    text = "{{ bos_token }}x"
    for value in (text, [{"name": "tool", "template": "y"}, {"name": "default", "template": text}]):
        settings = {"bos_token": END_OF_TEXT, "chat_template": value}
        files = {"tokenizer_config.json": json.dumps(settings).encode()}
        found = vocabulary.Vocabulary(TokenizerFolder(files, tokenizer=words._tokenizer, begin=words.begin))
        template = ChatTemplate(found)
        assert not template.is_plain and template.encode(TALK[:2])[0] == [words.begin, *words.encode("x")]


def test_without_a_template_conversations_are_plain_text():
    words = byte_pairs([TEXT], 280)
    template = ChatTemplate(words)
    ids, counts = template.encode(TALK[1:])
    counted, whole = split(words, ids, counts)
    assert whole == "<|endoftext|>User:  Hi \n\nAssistant: Hello.\n\n\nUser: Bye\nAssistant: So long.\n"
    assert counted == " Hello.\n\n\n So long.\n" and template.is_plain
    prompt, _ = template.encode(TALK[:2], reply=True)
    assert words.decode(prompt).endswith("\nAssistant:")
    assert "\nUser:" in template.stops and not ChatTemplate(chat_vocabulary(words)).stops


def test_templates_are_rendered_as_transformers_renders_them(words):
    template = """{% if true %}
    {{- {'a': 'é<'} | tojson }}
    {% endif %}
{%- for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}{{ strftime_now('%%') }}{{ tools }}"""
    ids, _ = ChatTemplate(with_template(words, template)).encode(TALK[:2])
    assert words.decode(ids) == '{"a": "é<"}\n1%None'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if %}", "chat_template.jinja: line 2: not a template that parses: Expected an expression"),
        ("{% generation %}", "chat_template.jinja: line 1: not a template that parses: Unexpected end of template"),
        (
            "{{ raise_exception('No system.\\nReally.') }}",
            "talks.json: line 3: chat_template.jinja refuses it: No",
        ),
        ("{{ messages.append(1) }}", "talks.json: line 3: chat_template.jinja refuses it: "),
        ("{{ messages[9].content }}", "talks.json: line 3: chat_template.jinja refuses it: "),
        ("{{ 1 / 0 }}", "talks.json: line 3: chat_template.jinja refuses it: division by zero"),
        ("{# nothing #}", "talks.json: line 3: chat_template.jinja writes nothing of it"),
    ],
)
def test_a_template_that_fails_is_named(words, template, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as error:
        ChatTemplate(with_template(words, template)).encode(TALK, source="talks.json: line 3")
    assert "\n" not in str(error.value)


def test_an_unknown_role_is_refused(words):
    with pytest.raises(UserError, match="refuses it: unknown role tool, expected system, user or assistant"):
        ChatTemplate(words).encode([{"role": "tool", "content": "x"}])


def test_a_character_that_the_vocabulary_lacks_is_named():
    template = ChatTemplate(chat_vocabulary(characters(["abc"])))
    with pytest.raises(UserError, match=r"^a\.json: line 3: the vocabulary has no 'x'"):
        template.encode([{"role": "user", "content": "ax"}], source="a.json: line 3")


def test_without_a_vocabulary_there_is_no_template():
    with pytest.raises(UserError, match=r"^no tokenizer$"):
        ChatTemplate(UnknownVocabulary("no tokenizer"))
