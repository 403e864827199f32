"""Vocabularies: GPT-2's own, and those of Hugging Face's tokenizers library, trained here or found in a folder.

A vocabulary other than GPT-2's is a folder with tokenizer.json, which transformers reads as it is, and
tokenizer_config.json, which names the tokens that begin and end a text. Its SHA-256, that of tokenizer.json, goes
into the header of token files.
"""

import hashlib
import json
import pathlib
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt2.data import tokenizer as gpt2_tokenizer
from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import atomic_write, open_to_read, read_json
from gpt2.formats.llmc import tokens_vocabulary

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SETTINGS_LIMIT = 2**20  # bytes
END_OF_TEXT = "<|endoftext|>"
LARGEST = 2**16  # token files hold uint16
BYTES = 256


class Vocabulary:
    """A text's tokens and back, by a tokenizers.Tokenizer.

    Attributes: `size`, the number of tokens; `begin`, `end`, the ids that begin and end a text, each may be None;
    `sha256`, the digest of tokenizer.json, 64 hexadecimal digits.
    """

    def __init__(self, data, settings=None, source=TOKENIZER):
        """data: tokenizer.json as bytes. settings: tokenizer_config.json as a dict. source: for error messages."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{source}: not a tokenizer that the tokenizers library can read: {error}") from error
        self._data, self._settings = data, settings or {}
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._tokenizer.encode_special_tokens = True  # a text that spells a control token does not contain it
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.begin, self.end = (self._control(f"{name}_token", source) for name in ("bos", "eos"))
        self._characters = None
        if isinstance(self._tokenizer.model, models.WordLevel):
            self._characters = set(self._tokenizer.get_vocab(with_added_tokens=False))

    def _control(self, name, source):
        token = self._settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            return None
        number = self._tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            raise UserError(f"{source}: its {name} {safe_repr(token)} is not one of its tokens")
        return number

    def encode(self, text, source="the text"):
        """Returns the tokens of a text, a list of int. Raises UserError, naming a character that the vocabulary lacks.

        A control token's name in the text is ordinary text.
        """
        self._require_characters(text, source)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts, source="the text"):
        """Returns the tokens of texts, a list of lists of int, as `encode` does, on all the machine's cores."""
        for text in texts:
            self._require_characters(text, source)
        return [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _require_characters(self, text, source):
        if self._characters is None or not (missing := set(text) - self._characters):
            return
        place = min(text.index(character) for character in missing)
        line = text.count("\n", 0, place) + 1
        raise UserError(
            f"{source}: the vocabulary has no {text[place]!r} (U+{ord(text[place]):04X}, line {line:,}, character "
            f"{place - text.rfind(chr(10), 0, place):,} of it); make one from a text that has it, or use bpe:N"
        )

    def decode(self, tokens):
        """Returns the text of tokens, a str; bytes that are not UTF-8 become U+FFFD, control tokens their names."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def save(self, folder):
        """Writes tokenizer.json, byte for byte as it was read, and tokenizer_config.json. Raises UserError."""
        with atomic_write(pathlib.Path(folder, SETTINGS)) as file:
            file.write(json.dumps(self._settings, indent=1, ensure_ascii=False).encode() + b"\n")
        with atomic_write(pathlib.Path(folder, TOKENIZER)) as file:
            file.write(self._data)


class GPT2Vocabulary:
    """GPT-2's own vocabulary, by tiktoken; attributes and methods as those of Vocabulary, `sha256` is None.

    Raises UserError if its files are missing and cannot be downloaded.
    """

    size, begin, end, sha256 = gpt2_tokenizer.EOT + 1, gpt2_tokenizer.EOT, gpt2_tokenizer.EOT, None

    def __init__(self, data_dir=None):
        self._encoding = gpt2_tokenizer.load_tokenizer(data_dir)

    def encode(self, text, source="the text"):
        return self._encoding.encode_ordinary(text)

    def encode_all(self, texts, source="the text"):
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode(self, tokens):
        return self._encoding.decode(tokens)


def load_vocabulary(folder):
    """Returns the Vocabulary in a folder. Raises UserError if there is none, or it is damaged."""
    path, settings = pathlib.Path(folder, TOKENIZER), pathlib.Path(folder, SETTINGS)
    with open_to_read(path) as file:
        data = file.read()
    loaded = read_json(settings, SETTINGS_LIMIT, "a tokenizer's settings") if settings.exists() else {}
    return Vocabulary(data, loaded, path)


def vocabulary_of(path):
    """Returns the Vocabulary of a token file, from NAME_vocabulary beside NAME_train.bin; None for GPT-2's.

    Raises UserError if that is not there, or is another than the file's header names.
    """
    sha256, path = tokens_vocabulary(path), pathlib.Path(path)
    if sha256 is None:
        return None
    name = re.sub(r"_(train|val)(_\d+)?$", "", path.stem)
    folder = path.with_name(f"{name}_vocabulary")
    if not folder.is_dir():
        raise UserError(f"{path}: its tokens are not GPT-2's, and {folder} with their vocabulary is not there")
    found = load_vocabulary(folder)
    if found.sha256 != sha256:
        raise UserError(f"{path}: its tokens are of another vocabulary than {folder}; prepare the texts again")
    return found


def characters(texts):
    """Returns a Vocabulary of all characters in the texts, an iterable of str, and <|endoftext|>."""
    found = sorted(set().union(*texts))
    if len(found) + 1 > LARGEST:
        raise UserError(f"{len(found):,} different characters: a vocabulary has at most {LARGEST - 1:,}; use bpe:N")
    numbers = {character: number for number, character in enumerate(found)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _finished(tokenizer)


def byte_pairs(texts, size):
    """Returns a byte-level BPE Vocabulary of `size` tokens, trained on the texts, an iterable of str.

    Words are split as GPT-2 splits them. The tokens are <|endoftext|>, the 256 bytes and `size` - 257 merges; the same
    texts give the same vocabulary. Raises UserError if the texts have fewer pairs, or `size` is not 257 to 65,536.
    """
    if not BYTES + 1 <= size <= LARGEST:
        raise UserError(f"bpe:{size}: choose a size from {BYTES + 1} (the bytes and {END_OF_TEXT}) to {LARGEST:,}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The library puts control tokens first; here they come last, as GPT-2's does.
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < size - 1:
        possible = tokenizer.get_vocab_size() + 1
        raise UserError(f"bpe:{size}: the text allows {possible:,} tokens; choose at most that many, or a longer text")
    return _finished(tokenizer)


def _finished(tokenizer):
    tokenizer.add_special_tokens([END_OF_TEXT])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return Vocabulary(tokenizer.to_str(pretty=True).encode(), settings)
