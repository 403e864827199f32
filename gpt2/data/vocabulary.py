"""Vocabularies: GPT-2's own, and those of Hugging Face's tokenizers library, trained here or found beside a model.

Files name a vocabulary by the SHA-256 of its tokens (see tokenizer_folder.token_digest): token files and model files in
their headers, None standing for GPT-2's. The vocabulary itself is a folder beside them, with tokenizer.json, which
transformers reads as it is, tokenizer_config.json, and all else that came with a model of Hugging Face's.
"""

import functools
import os
import pathlib
import re
import shutil

from tokenizers import decoders, models

from gpt2.data import tokenizer as gpt2_tokenizer
from gpt2.data.decoders import CLEAN_UP, LONGEST_CLEAN_UP, ByteDecoder, StreamDecoder, byte_level_map, decoded
from gpt2.errors import UserError
from gpt2.formats import pretrained
from gpt2.formats.files import atomic_folder
from gpt2.formats.llmc import UNKNOWN_VOCABULARY, tokens_vocabulary
from gpt2.formats.tokenizer_folder import (
    CARRIED,
    GPT2_SIZE,
    TOKENIZER,
    TokenizerFolder,
    library_errors,
    read_tokenizer_folder,
    token_digest,
    token_list,
)


class Tokenizer:
    """What Vocabulary and GPT2Vocabulary are to Python users: `encode(text)`, a list of int, and `decode(tokens)`."""

    @staticmethod
    def from_pretrained(name, data_dir=None):
        """Returns the vocabulary of a model, by any name that GPT2.from_pretrained takes, or in a folder of its own.

        data_dir: where GPT-2's is, or is downloaded to. Raises UserError if texts cannot be encoded and decoded.
        """
        found = model_vocabulary(name, data_dir)
        if found.problem:
            raise UserError(found.problem)
        return found

    def __repr__(self):
        return f"Tokenizer({self.size:,} tokens, {self.path or 'GPT-2'})"


class Vocabulary(Tokenizer):
    """A text's tokens and back, by a tokenizers.Tokenizer.

    Attributes: `size`, the number of tokens; `tokens`, a list of their names; `begin`, the id that begins a text, may
    be None; `ends`, the ids that end one, a tuple; `prefix`, ids that precede every prompt; `sha256`, the digest of the
    tokens, 64 hexadecimal digits, None for GPT-2's; `path` of its folder, or None; `files`, a dict of name -> bytes,
    what that holds; `problem`, why texts cannot be encoded and decoded, None if they can.
    """

    problem = None

    def __init__(self, folder):
        """folder: a TokenizerFolder with a tokenizer."""
        self._tokenizer, self.path, self.files = folder.tokenizer, folder.path, folder.files
        self.begin, self.ends, self.prefix = folder.begin, folder.ends, folder.prefix
        self._cleans_up = folder.cleans_up
        self.tokens = token_list(self._tokenizer)
        self.size, self.sha256 = len(self.tokens), token_digest(self.tokens)
        model = self._tokenizer.model
        names = self._tokenizer.get_vocab(with_added_tokens=False) if isinstance(model, models.WordLevel) else {}
        is_strict = names and model.unk_token not in names and all(len(name) == 1 for name in names)
        self._characters = set(names) if is_strict else None

    def encode(self, text, source="the text"):
        """Returns the tokens of a text, a list of int. Raises UserError, naming a character that the vocabulary lacks.

        A control token's name in the text is ordinary text.
        """
        self._require_characters(text, source)
        with library_errors(f"{source}: the vocabulary cannot encode it"):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts, source="the text"):
        """Returns the tokens of texts, a list of lists of int, as `encode` does, on all the machine's cores."""
        for text in texts:
            self._require_characters(text, source)
        with library_errors(f"{source}: the vocabulary cannot encode it"):
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
        return "".join(decoded(self, tokens)) if self.token_bytes else self._decode_all(list(tokens))

    def _decode_all(self, tokens):
        text = self._tokenizer.decode(tokens, skip_special_tokens=False)
        for spaced, close in CLEAN_UP if self._cleans_up else ():
            text = text.replace(spaced, close)
        return text

    @functools.cached_property
    def token_bytes(self):
        """The bytes of each token, a list of bytes of length `size`, a control token's its name, b"" if there is none.

        None for a vocabulary whose texts are more than their tokens' bytes in a row.
        """
        decoder = self._tokenizer.decoder
        if isinstance(decoder, decoders.ByteLevel):
            in_byte_level = byte_level_map()
        elif isinstance(decoder, decoders.Fuse):
            in_byte_level = {}
        else:
            return None
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        out = []
        for token in self.tokens:
            if token is None:
                out.append(b"")
            elif token in added or not in_byte_level.keys() >= set(token):
                out.append(token.encode())
            else:
                out.append(bytes(in_byte_level[character] for character in token))
        return out

    @property
    def control_tokens(self):
        """The ids of tokens that are no text, a set."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {id for id, token in added.items() if token.special} | set(self.ends)

    def decoder(self):
        """Returns an object with feed(id), which returns the text complete by then, and finish(), for the rest."""
        if self.token_bytes:
            return ByteDecoder(self.token_bytes)
        return StreamDecoder(self._decode_all, LONGEST_CLEAN_UP if self._cleans_up else 0)


class GPT2Vocabulary(Tokenizer):
    """GPT-2's own vocabulary, by tiktoken; attributes and methods as those of Vocabulary.

    Its files are read, or downloaded, when they are first needed; UserError is raised then if that fails.
    """

    problem, sha256, size, prefix, path, files = None, None, GPT2_SIZE, (), None, {}
    begin, ends, control_tokens = gpt2_tokenizer.EOT, (gpt2_tokenizer.EOT,), {gpt2_tokenizer.EOT}

    def __init__(self, data_dir=None):
        """data_dir: where its files are, see tokenizer.vocabulary_files."""
        self._data_dir = data_dir

    @functools.cached_property
    def _encoding(self):
        return gpt2_tokenizer.load_tokenizer(self._data_dir)

    def encode(self, text, source="the text"):
        return self._encoding.encode_ordinary(text)

    def encode_all(self, texts, source="the text"):
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode(self, tokens):
        return "".join(decoded(self, tokens))

    @functools.cached_property
    def token_bytes(self):
        return [self._encoding.decode_single_token_bytes(id) for id in range(self.size)]

    def decoder(self):
        return ByteDecoder(self.token_bytes)


class UnknownVocabulary:
    """Stands for the vocabulary of a model that there are only ids of; attributes as those of Vocabulary."""

    size, prefix = None, ()

    def __init__(self, problem, sha256=UNKNOWN_VOCABULARY, folder=None):
        """problem: one line. sha256: what the model's file says. folder: a model's own TokenizerFolder, or None."""
        folder = folder or TokenizerFolder({})
        self.problem, self.sha256 = problem, sha256
        self.begin, self.ends, self.path, self.files = folder.begin, folder.ends, folder.path, folder.files


def save_vocabulary(vocabulary, path):
    """Makes `path` the folder of a vocabulary's files, replacing that of another; without files there is none.

    Raises UserError on an I/O error, and for a folder that is no vocabulary's.
    """
    if os.path.lexists(path):
        if held_vocabulary(path) == vocabulary.files:
            return
        if not vocabulary.files:
            shutil.rmtree(path)
    if vocabulary.files:
        with atomic_folder(path, replace=True) as folder:
            for name, data in vocabulary.files.items():
                (folder / name).write_bytes(data)


def held_vocabulary(path):
    """Returns the files in a vocabulary's folder, name -> bytes. Raises UserError if it holds anything else."""
    path = pathlib.Path(path)
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    if foreign := sorted(name for name in names if name not in CARRIED):
        raise UserError(f"{path}: {foreign[0]!r} is no part of a vocabulary, so it is not replaced; rename it")
    return {name: (path / name).read_bytes() for name in names}


def load_vocabulary(path):
    """Returns the Vocabulary in a folder. Raises UserError if there is none that can be read."""
    if not pathlib.Path(path).is_dir():
        raise UserError(f"{path}: no such folder; a vocabulary is gpt2, chars, bpe:N, or a folder with {TOKENIZER}")
    folder = read_tokenizer_folder(path)
    if folder.problem:
        raise UserError(folder.problem)
    return Vocabulary(folder)


def vocabulary_of(path):
    """Returns the vocabulary of a token file: GPT-2's, that in NAME_vocabulary beside NAME_train.bin, or unknown.

    Raises UserError if the file names one that is not there.
    """
    sha256, path = tokens_vocabulary(path), pathlib.Path(path)
    if sha256 is None:
        return GPT2Vocabulary()
    if sha256 == UNKNOWN_VOCABULARY:
        return UnknownVocabulary(f"{path}: its header does not say of what vocabulary its ids are")
    name = re.sub(r"_(train|val)(_\d+)?$", "", path.stem)
    folder = path.with_name(f"{name}_vocabulary")
    if not folder.is_dir():
        raise UserError(f"{path}: its tokens are not GPT-2's, and {folder} with their vocabulary is not there")
    found = load_vocabulary(folder)
    if found.sha256 != sha256:
        raise UserError(f"{path}: its tokens are of another vocabulary than {folder}; prepare the texts again")
    return found


def model_vocabulary(name, data_dir=None):
    """Returns the vocabulary of a model, by any name that pretrained.load_weights takes; an UnknownVocabulary says why.

    data_dir: where GPT-2's is. Raises UserError if a model file and the vocabulary beside it do not belong together.
    """
    return found_vocabulary(name, *pretrained.find_vocabulary(name), data_dir)


def found_vocabulary(name, sha256, folder, data_dir=None):
    """Returns the vocabulary that pretrained.find_vocabulary found, as `model_vocabulary` does; name: for messages."""
    if folder is None and sha256 is None:
        return GPT2Vocabulary(data_dir)
    if folder is None:
        return UnknownVocabulary(f"{name}: its vocabulary is not GPT-2's, and not beside it", sha256)
    if folder.problem:
        return UnknownVocabulary(folder.problem, sha256, folder)
    found = Vocabulary(folder)
    if found.sha256 != sha256:
        raise UserError(f"{name}: was made with another vocabulary than the one beside it, {folder.path}; restore that")
    return found


def agreed_vocabulary(words, V, paths):
    """Returns the vocabulary of a model and of the token files it is used with: the model's, or if unknown, theirs.

    words: the model's, from `model_vocabulary`. V: the tokens it can tell apart. paths: of token files. Says on stdout
    when the files' counts as the model's. Raises UserError if the files are of another vocabulary.
    """
    for path in paths:
        sha256 = tokens_vocabulary(path)
        if sha256 == UNKNOWN_VOCABULARY or (words.problem is None and sha256 == words.sha256):
            continue
        stated = words.sha256 != UNKNOWN_VOCABULARY
        try:
            of_file = vocabulary_of(path)
        except UserError:
            if sha256 == words.sha256:  # the same, lost in both places
                continue
            raise
        if words.problem is not None and (sha256 == words.sha256 or not stated) and of_file.size <= V:
            print(f"{words.problem}: it is taken to be that of {path}", flush=True)
            words = of_file
        elif stated and not extends(words, of_file):
            own = "gpt2" if words.sha256 is None else words.path or "FOLDER"
            raise UserError(
                f"{path}: tokens of another vocabulary than the model's, which {_described(words)}; prepare the text "
                f"with that: gpt2 prepare TEXT --name NAME --vocab {own}"
            )
    return words


def conversations_vocabulary(words, V, paths):
    """Returns the vocabulary of a model that is tuned on conversations: that of their token files, its own and more.

    Arguments as for `agreed_vocabulary`. The files' vocabulary has a chat template, and may have more tokens than the
    model. Raises UserError if it does not begin with the model's.
    """
    found = vocabulary_of(paths[0])
    if other := next((path for path in paths if tokens_vocabulary(path) != found.sha256), None):
        raise UserError(f"{paths[0]} and {other}: tokens of different vocabularies; prepare both with one --vocab")
    if words.problem is not None and words.sha256 in (UNKNOWN_VOCABULARY, found.sha256) and found.size <= V:
        print(f"{words.problem}: it is taken to be that of {paths[0]}", flush=True)
    elif words.problem is not None or not extends(found, words):
        own = words.path or ("gpt2" if words.sha256 is None else "FOLDER")
        raise UserError(
            f"{paths[0]}: tokens of a vocabulary that does not begin with the model's, which {_described(words)}; "
            f"prepare the conversations with that: gpt2 prepare FILE --chat --name NAME --vocab {own}"
        )
    return found


def _described(vocabulary):
    if vocabulary.sha256 is None:
        return "is GPT-2's"
    return f"has {vocabulary.size:,} tokens" if vocabulary.size else f"has the SHA-256 {vocabulary.sha256[:12]}..."


def extends(larger, smaller):
    """Returns whether every token of a vocabulary is in another, at the same place."""
    if larger.problem is not None:
        return False
    if isinstance(smaller, GPT2Vocabulary):
        return larger.sha256 is None or token_digest(larger.tokens[: smaller.size]) is None
    return not isinstance(larger, GPT2Vocabulary) and larger.tokens[: smaller.size] == smaller.tokens
