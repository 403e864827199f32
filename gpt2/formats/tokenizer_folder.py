"""The tokenizer in a Hugging Face folder, in whichever form transformers has written it, and the files beside it.

The forms: tokenizer.json; or vocab.json and merges.txt, of a byte-level BPE. To either, added_tokens.json or
tokenizer_config.json may add tokens; the latter, or special_tokens_map.json, names the control tokens. Ids and texts
are those of transformers 5.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import open_to_read, read_json

TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# Forms that cannot be read here, but go wherever the model goes.
OTHERS = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
TOKENIZER_FILES = (
    TOKENIZER,
    VOCABULARY,
    MERGES,
    SETTINGS,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    *OTHERS,
    CHAT_TEMPLATE,
)
CARRIED = (*TOKENIZER_FILES, GENERATION_CONFIG, CONFIG)  # all of a folder but its weights
SETTINGS_FILES = (SPECIAL_TOKENS, SETTINGS, ADDED_TOKENS, CONFIG, GENERATION_CONFIG)
LIMIT, SETTINGS_LIMIT = 2**28, 2**24  # bytes of a file
LARGEST_ID = 2**20  # of a token, exclusive
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# What transformers takes, for GPT2Tokenizer, for names that are not there.
GPT2_CLASS, END_OF_TEXT = "GPT2Tokenizer", "<|endoftext|>"
GPT2_NAMES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
GPT2_SIZE = 50257
GPT2_SHA256 = "2d4e96560e324abcfaeaac6d24016c22f354ef9da213432b451e9a860b21d508"  # of GPT-2's tokens, see token_digest


@dataclasses.dataclass
class TokenizerFolder:
    """What a folder says about the text of its model.

    files: a dict of name -> bytes, those of CARRIED that are there. path: of the folder. tokenizer: a
    tokenizers.Tokenizer, None if there is none that can be read; then `problem` says why, in a line. begin: the id that
    a text starts with when there is no prompt, or None. ends: the ids that end a text, a tuple. prefix: ids that
    precede every prompt, a tuple. cleans_up: whether decoded text loses the spaces before punctuation.
    """

    files: dict
    path: pathlib.Path | None = None
    tokenizer: tokenizers.Tokenizer | None = None
    problem: str | None = None
    begin: int | None = None
    ends: tuple = ()
    prefix: tuple = ()
    cleans_up: bool = False


def read_tokenizer_folder(folder):
    """Returns the TokenizerFolder of a folder. Raises UserError for a file that cannot be read or is not JSON."""
    folder = pathlib.Path(folder)
    files = {}
    for name in CARRIED:
        if (folder / name).is_file():
            with open_to_read(folder / name) as file:
                if len(data := file.read(LIMIT + 1)) > LIMIT:
                    raise UserError(f"{folder / name}: more than {LIMIT:,} bytes, expected part of a tokenizer")
            files[name] = data
    settings = {name: read_json(folder / name, SETTINGS_LIMIT, "settings") for name in SETTINGS_FILES if name in files}
    names = settings.get(SETTINGS, {})
    if "added_tokens_decoder" not in names:
        names = names | settings.get(SPECIAL_TOKENS, {})
    found = TokenizerFolder(files, folder)
    try:
        with library_errors(f"{folder}: not a tokenizer that the tokenizers library can read"):
            names = _read_tokenizer(found, names, settings)
    except UserError as error:
        found.problem = str(error)
    found.begin, found.ends = _controls(found, names, settings)
    return found


@contextlib.contextmanager
def library_errors(what):
    """Raises UserError, one line that starts with `what`, for anything that the tokenizers library raises."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # nothing more specific, and for a panic not even an Exception
        raise UserError(f"{what}: {' '.join(str(error).split())[:200]}") from error


def _read_tokenizer(found, names, settings):
    """Adds the tokenizer to a TokenizerFolder, or says why there is none. Returns `names` with transformers' defaults.

    names: what the settings say of the tokenizer.
    """
    if not (tokenizer := _tokenizer(found.files)):
        found.problem = _missing(found.path, found.files)
        return names
    is_complete = TOKENIZER in found.files
    if not is_complete or _is_gpt2s(tokenizer, names, settings.get(CONFIG, {})):
        names = GPT2_NAMES | names
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(names.get("add_prefix_space")))
    _add_tokens(tokenizer, names, settings.get(ADDED_TOKENS, {}))
    _check_ids(tokenizer.get_vocab(with_added_tokens=True))
    found.prefix = _prefix(tokenizer, names, is_complete)
    is_bpe = isinstance(tokenizer.model, models.BPE)
    found.cleans_up = names.get("clean_up_tokenization_spaces") is True and not is_bpe
    found.tokenizer = tokenizer
    return names


def _missing(folder, files):
    """Says why there is no tokenizer in a folder."""
    other = next((name for name in OTHERS if name in files), None)
    if other is None:
        return f"{folder}: no {TOKENIZER} there, nor {VOCABULARY} with {MERGES}"
    return f"{folder}: its tokenizer, {other}, cannot be read here; save it as {TOKENIZER} with transformers"


def _tokenizer(files):
    """Returns the tokenizer, without the tokens that settings add, or None if there is none."""
    if TOKENIZER in files:
        tokenizer = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())
    elif VOCABULARY in files and MERGES in files:
        lines = files[MERGES].decode().replace("\r\n", "\n").split("\n")  # a token may hold other ends of lines
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        vocabulary = json.loads(files[VOCABULARY])
        _check_ids(vocabulary)
        tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        return None
    tokenizer.encode_special_tokens = True  # a text that spells a control token does not contain it
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _is_gpt2s(tokenizer, names, config):
    """Returns whether transformers reads a tokenizer.json as its GPT2Tokenizer, whose settings replace what it says."""
    kind = names.get("tokenizer_class") or config.get("tokenizer_class") or GPT2_CLASS
    is_byte_level = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    return str(kind).removesuffix("Fast") == GPT2_CLASS and isinstance(tokenizer.model, models.BPE) and is_byte_level


def _add_tokens(tokenizer, names, added):
    """Adds tokens that are not in it: those with an id of their own, in that order, then the other control tokens.

    added: a dict of token -> id.
    """
    extra = names.get("extra_special_tokens") or names.get("additional_special_tokens") or ()
    control = [names.get(name) for name in NAMED]
    control += [token for name, token in names.items() if name.endswith("_token") and name not in NAMED]
    control += extra.values() if isinstance(extra, dict) else extra
    control = [token["content"] if isinstance(token, dict) else token for token in control]
    control = [token for token in control if isinstance(token, str)]
    listed = {int(id): _added_token(token) for id, token in (names.get("added_tokens_decoder") or {}).items()}
    for token, id in added.items() if not listed else ():
        special = token in control
        listed[int(id)] = tokenizers.AddedToken(token, special=special, normalized=not special)
    for _, token in sorted(listed.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in control])


def _added_token(fields):
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return tokenizers.AddedToken(fields["content"], **{flag: fields[flag] for flag in flags if flag in fields})


def _check_ids(vocabulary):
    """Raises ValueError unless there are tokens, and each has an id of its own below LARGEST_ID.

    vocabulary: a dict of token -> id.
    """
    tokens = {}
    for token, id in vocabulary.items():
        if type(id) is not int or not 0 <= id < LARGEST_ID:
            raise ValueError(
                f"the token {safe_repr(token)} has the id {safe_repr(id)}, expected 0 to {LARGEST_ID - 1:,}"
            )
        if id in tokens:
            raise ValueError(f"the tokens {safe_repr(tokens[id])} and {safe_repr(token)} have the same id, {id}")
        tokens[id] = token
    if not tokens:
        raise ValueError("it has no tokens")


def _controls(found, names, settings):
    """Returns (begin, ends) of a TokenizerFolder: those of the model's generation config, or else of its config.

    Ids that those do not mention are the tokenizer's.
    """
    source = next((name for name in (GENERATION_CONFIG, CONFIG) if name in settings), None)
    size = settings.get(CONFIG, {}).get("vocab_size")
    size = size if type(size) is int else LARGEST_ID

    def ids(name):
        stated = settings[source].get(f"{name}_token_id") if source else None
        stated = stated if isinstance(stated, list) else [stated]
        for id in stated:
            if id is not None and (type(id) is not int or id < 0):
                raise UserError(f"{found.path / source}: {name}_token_id is {safe_repr(id)}, expected a token id")
        return tuple(id for id in stated if id is not None and id < size)

    def named(name):
        id = _named(found.tokenizer, names, name)
        return () if id is None or id >= size else (id,)

    ends = (
        ids("eos") if source and (source == GENERATION_CONFIG or "eos_token_id" in settings[source]) else named("eos")
    )
    return next(iter((*ids("bos"), *named("bos"), *found.prefix, *ends)), None), ends


def _named(tokenizer, names, name):
    """Returns the id of a control token by its name in the settings, "bos" or "eos"; None if there is none."""
    token = names.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(token) if tokenizer and isinstance(token, str) else None


def _prefix(tokenizer, names, is_complete):
    """Returns the ids that the tokenizer puts before every text.

    is_complete: whether the tokenizer knows them, rather than the settings.
    """
    if not is_complete:
        begin = _named(tokenizer, names, "bos")
        return (begin,) if names.get("add_bos_token") is True and begin is not None else ()
    if not tokenizer.num_special_tokens_to_add(is_pair=False):
        return ()
    encoding = tokenizer.encode("a")
    count = next((n for n, added in enumerate(encoding.special_tokens_mask) if not added), 0)
    return tuple(encoding.ids[:count])


def token_list(tokenizer):
    """Returns a tokenizers.Tokenizer's tokens by their ids, a list of str; None where there is none of that id."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [None] * (max(ids.values(), default=-1) + 1)
    for token, id in ids.items():
        tokens[id] = token
    return tokens


def token_digest(tokens):
    """Returns what tells vocabularies apart, the SHA-256 of a `token_list` as JSON, 64 hexadecimal digits.

    It is None for GPT-2's own tokens, and does not depend on the form in which a tokenizer is saved.
    """
    found = hashlib.sha256(json.dumps(tokens, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    return None if found == GPT2_SHA256 else found


def as_json(fields):
    """Returns a JSON object as the bytes of a file."""
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
