"""Vocabularies for conversations: with a chat template, and the control tokens that it writes."""

import json
import pathlib
import tempfile

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gpt2.data import tokenizer as gpt2_tokenizer
from gpt2.data.trained_vocabulary import CHAT_TOKENS, END_OF_TURN, LARGEST
from gpt2.data.vocabulary import GPT2Vocabulary, load_vocabulary
from gpt2.errors import UserError
from gpt2.formats.tokenizer_folder import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    CONFIG,
    END_OF_TEXT,
    GENERATION_CONFIG,
    MERGES,
    SETTINGS,
    SPECIAL_TOKENS,
    TOKENIZER,
    VOCABULARY,
    as_json,
    token_list,
)

OWN_TEMPLATE = pathlib.Path(__file__).with_name(CHAT_TEMPLATE)


def chat_template(vocabulary):
    """Returns (file name, template) of a vocabulary's own chat template, a str; None if it has none.

    It is chat_template.jinja, or "chat_template" in tokenizer_config.json: a str, or the one named "default" in a list
    of dicts of "name" and "template". Raises UserError if it is neither.
    """
    if CHAT_TEMPLATE in vocabulary.files:
        source = f"{vocabulary.path}/{CHAT_TEMPLATE}" if vocabulary.path else CHAT_TEMPLATE
        return CHAT_TEMPLATE, gpt2_tokenizer.decode_text(vocabulary.files[CHAT_TEMPLATE], source)
    found = json.loads(vocabulary.files.get(SETTINGS, b"{}")).get("chat_template")
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict) and each.get("name") == "default"]
        found = named[0].get("template") if named else None
    if found is not None and not isinstance(found, str):
        raise UserError(f"{vocabulary.path or ''}/{SETTINGS}: its chat_template is no text")
    return None if found is None else (SETTINGS, found)


def control_ids(vocabulary, template):
    """Returns token -> id of the control tokens in a chat template: special ones, and added ones that it spells.

    template: its text.
    """
    if isinstance(vocabulary, GPT2Vocabulary):
        return {END_OF_TEXT: vocabulary.begin}
    added = {token.content: id for id, token in vocabulary._tokenizer.get_added_tokens_decoder().items()}
    spelled = {token: id for token, id in added.items() if token in template and token.strip()}
    return spelled | {vocabulary.tokens[id]: id for id in vocabulary.control_tokens if id < vocabulary.size}


def chat_vocabulary(vocabulary, data_dir=None):
    """Returns the Vocabulary for conversations: the same if it has a chat template, else with that of this package.

    The control tokens that the template writes are added where they are missing, as the last ids: 4 to GPT-2's, so that
    it has 50,261 tokens. Generation then also ends with <|end|>. data_dir: where GPT-2's files are. Raises UserError.
    """
    if vocabulary.problem is not None:
        raise UserError(vocabulary.problem)
    if chat_template(vocabulary):
        return vocabulary
    if isinstance(vocabulary, GPT2Vocabulary):
        tokenizer = _gpt2_tokenizer(data_dir)
    else:
        tokenizer = tokenizers.Tokenizer.from_str(vocabulary._tokenizer.to_str())
    tokenizer.add_special_tokens(list(CHAT_TOKENS))
    with tempfile.TemporaryDirectory() as folder:  # read back as those will who get it
        for name, data in _chat_files(vocabulary, tokenizer).items():
            pathlib.Path(folder, name).write_bytes(data)
        made = load_vocabulary(folder)
    made.path = vocabulary.path
    if made.size > LARGEST:
        raise UserError(f"{made.path}: {made.size:,} tokens with those for conversations, at most {LARGEST:,} fit")
    if made.tokens != token_list(tokenizer):
        raise UserError(f"{made.path}: tokens for conversations cannot follow its own, whose ids have gaps")
    return made


def _chat_files(vocabulary, tokenizer):
    """Returns the files of a chat vocabulary with a tokenizer: those of the old one, as far as they still hold."""
    replaced = (TOKENIZER, VOCABULARY, MERGES, ADDED_TOKENS, SPECIAL_TOKENS)
    files = {name: data for name, data in vocabulary.files.items() if name not in replaced}
    names = SPECIAL_TOKENS, SETTINGS, GENERATION_CONFIG, CONFIG
    old = {name: json.loads(vocabulary.files.get(name, "{}")) for name in names}
    turn = tokenizer.token_to_id(END_OF_TURN)
    ends = [*(id for id in vocabulary.ends if id != turn), turn]
    settings = {"clean_up_tokenization_spaces": False} if isinstance(vocabulary, GPT2Vocabulary) else {}
    settings |= old[SPECIAL_TOKENS] | old[SETTINGS] | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("added_tokens_decoder", None)  # tokenizer.json has them all
    for name, id in (("bos", vocabulary.begin), ("eos", ends[0]), ("pad", ends[0])):
        if settings.get(f"{name}_token") is None and id is not None:
            settings[f"{name}_token"] = tokenizer.id_to_token(id)
    controls = {"bos_token_id": vocabulary.begin, "eos_token_id": ends}
    if CONFIG in files:
        files[CONFIG] = as_json(old[CONFIG] | controls | {"vocab_size": len(token_list(tokenizer))})
    files[TOKENIZER] = tokenizer.to_str(pretty=True).encode()
    files[SETTINGS] = as_json(settings)
    files[GENERATION_CONFIG] = as_json({"pad_token_id": ends[0]} | old[GENERATION_CONFIG] | controls)
    files[CHAT_TEMPLATE] = OWN_TEMPLATE.read_bytes()
    return files


def _gpt2_tokenizer(data_dir):
    """Returns GPT-2's own tokenizer as a tokenizers.Tokenizer."""
    merges, tokens = gpt2_tokenizer.vocabulary_files(data_dir)
    tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(tokens), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer
