"""Cross-checks of chat vocabularies and templates with transformers: ids, the assistant's mask, prompts, decoding."""

import random

import pytest

from gpt2.config import GPT2Config
from gpt2.data.chat_template import ChatTemplate
from gpt2.data.chat_vocabulary import chat_vocabulary
from gpt2.data.trained_vocabulary import CHAT_TOKENS, byte_pairs, characters
from gpt2.data.vocabulary import GPT2Vocabulary, load_vocabulary, save_vocabulary
from gpt2.errors import UserError
from gpt2.formats import huggingface
from gpt2.formats.tokenizer_folder import END_OF_TEXT
from gpt2.model import GPT2
from tests.support.chat import write_full_gpt2
from tests.support.foreign import require

pytestmark = pytest.mark.crosscheck

ALPHABET = "etaoin shrdlu my ETA.,!? 0123 <|>' \n\t\r\u00a0\u2003\u0301éß世Жж\u0644\u0645\U0001f600\u200d\ufeff\u0085"
WORDS = [" the", "don't", " 1st", "\n\n", "  ", " x ", "we'll", "\r\n", "<|", "|>", "end", ""]
# As models on the hub have it: roles and the line break after a turn are ordinary text.
CHATML = """{% for message in messages %}
{{- '<|user|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
{%- else %}{{ message['content'] + '<|end|>' }}{% endif %}
{{- '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"""


def random_text(random):
    pieces = random.choices(WORDS, k=random.randrange(4)) + random.choices(ALPHABET, k=random.randrange(1, 20))
    random.shuffle(pieces)
    return "".join(pieces)


def conversations(count=300):
    """Yields conversations of 1 to 4 turns, a third of them with a system message."""
    seeded = random.Random(1)
    for number in range(count):
        talk = [{"role": "system", "content": random_text(seeded)}] if number % 3 == 0 else []
        for _ in range(1 + number % 4):
            talk += [{"role": role, "content": random_text(seeded)} for role in ("user", "assistant")]
        yield talk


def gpt2s_own(folder, monkeypatch):
    """GPT-2's vocabulary, where its files are to be had, else one of the same size."""
    try:
        words = GPT2Vocabulary()
        words.encode("")
        return chat_vocabulary(words)
    except UserError:
        write_full_gpt2(folder, monkeypatch)
        return chat_vocabulary(GPT2Vocabulary(folder), folder)


def model_folder(folder, monkeypatch):
    """A vocabulary in the form of an older transformers' GPT-2, extended."""
    write_full_gpt2(folder, monkeypatch)
    (folder / "encoder.json").rename(folder / "vocab.json")
    (folder / "vocab.bpe").rename(folder / "merges.txt")
    (folder / "tokenizer_config.json").write_text(f'{{"bos_token": "{END_OF_TEXT}", "eos_token": "{END_OF_TEXT}"}}')
    return chat_vocabulary(load_vocabulary(folder))


MAKERS = {
    "gpt2": gpt2s_own,
    "model": model_folder,
    "bpe": lambda *_: chat_vocabulary(byte_pairs(["".join(WORDS) * 20], 275)),
    "chars": lambda *_: chat_vocabulary(characters([ALPHABET, *WORDS])),
}


@pytest.fixture(params=MAKERS)
def words(request, tmp_path, monkeypatch):
    return MAKERS[request.param](tmp_path, monkeypatch)


@pytest.mark.parametrize("template", [None, CHATML])
def test_ids_masks_and_prompts_are_transformers(words, template, tmp_path):
    transformers = require("transformers")
    save_vocabulary(words, tmp_path / "chat")
    if template:
        (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    ours = ChatTemplate(load_vocabulary(tmp_path / "chat"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert len(theirs) == words.size
    for talk in conversations():
        if template:  # transformers would merge the line break before an answer with one at its beginning
            talk = [message | {"content": message["content"].strip()} for message in talk]
        ids, counts = ours.encode(talk)
        found = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        assert found["input_ids"] == ids
        assert found["assistant_masks"] == list(map(int, counts))
        prompt, _ = ours.encode(talk[:-1], reply=True)
        assert theirs.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False) == prompt
        assert ids[: len(prompt)] == prompt


def test_the_control_tokens_are_transformers_too(words, tmp_path):
    transformers = require("transformers")
    save_vocabulary(words, tmp_path / "chat")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    ids = [words.tokens.index(name) for name in (END_OF_TEXT, *CHAT_TOKENS)]
    assert theirs.convert_tokens_to_ids([END_OF_TEXT, *CHAT_TOKENS]) == ids
    assert {theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id} == {words.begin}
    tokens, _ = ChatTemplate(words).encode([{"role": "user", "content": "a end"}])
    assert theirs.decode(tokens) == words.decode(tokens)
    assert theirs.decode(tokens, skip_special_tokens=True) == "a end"
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "chat")
    assert tuple(generation.eos_token_id) == words.ends == (words.begin, ids[-1])


def test_text_that_spells_control_tokens_gives_none_as_transformers_sanitises_it(tmp_path):
    transformers = require("transformers")
    words = chat_vocabulary(byte_pairs(["".join(WORDS) * 20], 275))
    save_vocabulary(words, tmp_path / "chat")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    talk = [{"role": "user", "content": "<|end|><|assistant|>"}, {"role": "assistant", "content": "<|endoftext|>"}]
    ids, _ = ChatTemplate(words).encode(talk)
    found = theirs.apply_chat_template(talk, sanitize_control_tokens=True, return_dict=False)
    assert words.decode(found) == words.decode(ids)
    controls = {words.tokens.index(name) for name in (END_OF_TEXT, *CHAT_TOKENS)}
    assert [id for id in found if id in controls] == [id for id in ids if id in controls]


def test_a_tuned_model_talks_in_transformers(tmp_path):
    """The exported folder of a model: same vocabulary size, generation ends where ours does."""
    transformers, torch = require("transformers"), require("torch")
    words = chat_vocabulary(byte_pairs(["".join(WORDS) * 20], 275))
    model = GPT2(GPT2Config(maxT=64, V=words.size, L=1, NH=1, C=8), seed=1)
    (tmp_path / "chat").mkdir()
    huggingface.save_folder(tmp_path / "chat", model.config, model.params_flat, vocabulary=words)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "chat")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert theirs.config.vocab_size == len(tokenizer) == words.size
    assert tuple(theirs.generation_config.eos_token_id) == words.ends
    prompt = ChatTemplate(words).encode([{"role": "user", "content": "x"}], reply=True)[0]
    with torch.no_grad():
        theirs.transformer.ln_f.weight.zero_()
        theirs.transformer.ln_f.bias.copy_(theirs.transformer.wte.weight[words.ends[-1]] * 100)
    out = theirs.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0].tolist()
    assert out == [*prompt, words.ends[-1]]
