"""Small tokenizers in the forms of folders that transformers has written, and texts to try them on."""

import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
CONTROL = ("<s>", "<pad>", "</s>", "<unk>")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
CORPUS = (
    "hello world, don't we'll 1234567 3.14 café New York the the thing is being 中文字符 日本語テキスト 한국어 العربية "
    "हिन्दी 😀 naïve Straße. \x85x \u2028y \xa0z \u3000w\n"
) * 5
PIECES = [
    *"hello| world| don't|we'll|I'VE|  | |   \n\n|\t|\r\n|\0|\x1b|\x7f|\x85|\u2028|\xa0|\u3000|1234567".split("|"),
    *"１２|中文字符|日本語テキスト|한국어|العربية|हिन्दी|é|e\u0301|😀|👩\u200d👩\u200d👧|🇩🇪|café".split("|"),
    *"</s>|<s>|<unk>|<pad>|[PAD]|[CLS]|<start of turn>|New York|New Yorker|##ing|▁|Ġ".split("|"),
    *".| ,|?!|-|_|the| the|ing| '| n't| 3.14|ﬁ|\ufeff|\ufffd|Straße|NAÏVE".split("|"),
    END_OF_TEXT,
]


def some_texts(count):
    """Returns different texts of all kinds, a list of str."""
    rng, found = random.Random(1), {"", " ", "\n"}
    while len(found) < count:
        pieces = rng.choices(PIECES, k=rng.randint(1, 12))
        for _ in range(rng.randint(0, 3)):
            character = rng.choice([rng.randrange(32, 127), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])
            pieces.insert(rng.randrange(len(pieces) + 1), chr(character))
        found.add("".join(pieces))
    return sorted(found)


def write(folder, name, contents):
    contents = contents if isinstance(contents, str) else json.dumps(contents)
    (pathlib.Path(folder) / name).write_bytes(contents.encode())


def byte_level(size=600, first=(), last=(END_OF_TEXT,)):
    """Returns a byte-level BPE of `size` tokens at most; first, last: control tokens before and after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(last), initial_alphabet=alphabet, special_tokens=list(first), show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens(list(last))
    return tokenizer


def pairs_of_bytes(size, first="ÎÏ²³´µ¶·¸¹º»¼½¾¿Ģģ"):
    """Returns (vocab, merges) of a byte-level BPE of any size to 65,000: the bytes, then pairs of them.

    first: bytes to begin with, by default Greek letters'; the others are in GPT-2's order.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet.sort(key=lambda character: character not in first)
    merges = [(left, right) for left in alphabet for right in alphabet][: size - 257]
    tokens = [*alphabet, *(left + right for left, right in merges), END_OF_TEXT]
    return {token: id for id, token in enumerate(tokens)}, [" ".join(merge) for merge in merges]


def with_template(tokenizer, first, last=None):
    """Makes a tokenizer put control tokens around every text."""
    names = [name for name in (first, last) if name]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}" if last else f"{first} $A",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in names],
    )
    return tokenizer


def write_vocab_and_merges(folder, vocab=None, merges=None, header="#version: 0.2\n", end="\n"):
    """Writes the form of 2019; without vocab and merges that of `byte_level`. Returns the number of tokens."""
    if vocab is None:
        tokenizer = byte_level()
        vocab = tokenizer.get_vocab()
        merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    write(folder, "vocab.json", vocab)
    write(folder, "merges.txt", (header + "\n".join(merges) + "\n").replace("\n", end))
    return len(vocab)


def merges_with_odd_whitespace(folder):
    vocab, merges = pairs_of_bytes(257)
    for token in ("\x85", "a\x85", "\u2028", "a\u2028", "ab", "\x0c", "a\x0c"):
        vocab[token] = len(vocab)
    write_vocab_and_merges(folder, vocab, [*merges, "a \x85", "a \u2028", "a \x0c", "a b"])


def tokens_outside_the_bytes(folder):
    vocab, merges = pairs_of_bytes(400)
    write_vocab_and_merges(folder, vocab | {"a b": 400, "中": 401, "caf\xe9": 402}, merges)


def form_of_2020(folder):
    size = write_vocab_and_merges(folder)
    token = {"content": END_OF_TEXT, "__type": "AddedToken", **FLAGS}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), token)
    write(folder, "tokenizer_config.json", names | {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"})
    write(folder, "special_tokens_map.json", names | {"pad_token": "<pad>"})
    added = {"<pad>": size, "New Yorker": size + 3, "New York": size + 2, "<start of turn>": size + 1}
    write(folder, "added_tokens.json", added)


def form_of_2021(folder):
    form_of_2020(folder)
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.add_tokens(["<start of turn>", "New York", "New Yorker"])
    write(folder, "tokenizer.json", tokenizer.to_str())


def form_of_2023(folder):
    tokenizer = byte_level(first=CONTROL, last=())
    tokenizer.add_special_tokens(["<start of turn>"])
    flagged = [AddedToken("New Yorker", normalized=False), AddedToken("the", single_word=True)]
    tokenizer.add_tokens(["New York", *flagged, AddedToken("[PAD]", lstrip=True, rstrip=True)])
    names = ("content", *FLAGS, "special")
    listed = tokenizer.get_added_tokens_decoder().items()
    added = {str(id): {name: getattr(token, name) for name in names} for id, token in listed}
    settings = {"added_tokens_decoder": added, "additional_special_tokens": ["<start of turn>"], "errors": "replace"}
    settings |= {"tokenizer_class": "GPT2Tokenizer", "clean_up_tokenization_spaces": True, "add_bos_token": False}
    write(folder, "tokenizer_config.json", NAMES | settings)
    write(folder, "special_tokens_map.json", NAMES)
    write(folder, "tokenizer.json", tokenizer.to_str())


def word_pieces():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=control)
    tokenizer.train_from_iterator([CORPUS], trainer)
    return with_template(tokenizer, "[CLS]", "[SEP]")


def bert(**settings):
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "SEP", "PAD", "CLS", "MASK")}
    return complete(word_pieces(), **names, **settings)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFKC(), decoders.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, show_progress=False, unk_token="<unk>", special_tokens=["<unk>", *CONTROL[:3]]
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def byte_fallback():
    vocab = dict.fromkeys(
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abdeghilnorstuw中文.,"]
    )
    vocab = dict.fromkeys([*vocab, "th", "the", "▁the", "in", "ing"])
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("in", "g")]
    numbers = {token: id for id, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return with_template(tokenizer, "<s>")


def words():
    names = ["[UNK]", "hello", "world", "the", ".", "<s>"]
    tokenizer = Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def some_characters():
    names = {name: id for id, name in enumerate("\ufffdhelowrd .\n中")}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="\ufffd"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def changed(tokenizer, **parts):
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def complete(tokenizer, kind="PreTrainedTokenizerFast", **settings):
    """Returns a function that writes tokenizer.json, and tokenizer_config.json unless kind is None."""

    def write_form(folder):
        write(folder, "tokenizer.json", tokenizer.to_str())
        if kind:
            write(folder, "tokenizer_config.json", {"tokenizer_class": kind, **settings})

    return write_form


def incomplete(settings=None, **arguments):
    """Returns a function that writes vocab.json and merges.txt, and settings as tokenizer_config.json, if any."""

    def write_form(folder):
        write_vocab_and_merges(folder, **arguments)
        if settings is not None:
            write(folder, "tokenizer_config.json", settings)

    return write_form


def with_special_tokens_map(form, names):
    def write_form(folder):
        form(folder)
        write(folder, "special_tokens_map.json", names)

    return write_form


SPACED = pre_tokenizers.ByteLevel(add_prefix_space=True)
DIGITS = [
    pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}|[^\s\p{N}]+|\s+"), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]
STEPS = [decoders.ByteLevel(), decoders.Fuse()]
# Each a function that writes the form into a folder.
FORMS = {
    "vocab and merges": incomplete(),
    "merges without a header": incomplete(header=""),
    "merges with CRLF": incomplete(end="\r\n"),
    "merges with odd whitespace": merges_with_odd_whitespace,
    "tokens outside the bytes": tokens_outside_the_bytes,
    "vocab, merges, settings": incomplete({"add_prefix_space": True, "add_bos_token": True}),
    "vocab, merges, named in the map": with_special_tokens_map(
        incomplete(), {**NAMES, "additional_special_tokens": ["[PAD]"]}
    ),
    "2020": form_of_2020,
    "2021": form_of_2021,
    "2023": form_of_2023,
    "tokenizer.json": complete(byte_level(), None),
    "tokenizer.json with a prefix space": complete(changed(byte_level(), pre_tokenizer=SPACED), None),
    "the same, GPT2TokenizerFast": complete(
        changed(byte_level(), pre_tokenizer=SPACED), "GPT2TokenizerFast", add_bos_token=True
    ),
    "the same, PreTrainedTokenizerFast": complete(
        changed(byte_level(), pre_tokenizer=SPACED), add_prefix_space=False, eos_token=END_OF_TEXT, add_bos_token=True
    ),
    "control tokens in the vocabulary only": complete(byte_level(first=CONTROL, last=()), "GPT2Tokenizer", **NAMES),
    "a template begins texts": complete(with_template(byte_level(first=CONTROL), "<s>")),
    "a template in GPT2Tokenizer": complete(with_template(byte_level(first=CONTROL), "<s>"), "GPT2Tokenizer", **NAMES),
    "extra tokens, a list": complete(byte_level(), extra_special_tokens=["[PAD]", "New York"]),
    "extra tokens, a dict": complete(byte_level(), extra_special_tokens={"a_token": "[PAD]", "b_token": "New York"}),
    "additional tokens": complete(byte_level(), additional_special_tokens=["[PAD]", "New York"]),
    "a control token of its own name": complete(byte_level(), eos_token=END_OF_TEXT, image_token="[PAD]"),
    "the map goes before the settings": with_special_tokens_map(
        complete(byte_level(first=CONTROL), eos_token="<pad>"), {"eos_token": "</s>"}
    ),
    "another class": complete(byte_level(), "MyTokenizer", eos_token=END_OF_TEXT),
    "normalizer": complete(changed(byte_level(), normalizer=normalizers.NFC())),
    "digits in threes": complete(changed(byte_level(), pre_tokenizer=pre_tokenizers.Sequence(DIGITS))),
    "decoder of steps": complete(
        changed(byte_level(), decoder=decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]))
    ),
    "WordPiece": bert(),
    "WordPiece, cleaned up": bert(clean_up_tokenization_spaces=True),
    "BertTokenizer": bert(kind="BertTokenizer", do_lower_case=False, clean_up_tokenization_spaces=True),
    "Unigram": complete(unigram(), **NAMES),
    "Unigram, cleaned up": complete(unigram(), **NAMES, clean_up_tokenization_spaces=True),
    "BPE with byte fallback": complete(
        byte_fallback(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=True
    ),
    "words": complete(words(), bos_token="<s>", unk_token="[UNK]"),
    "characters, some unknown": complete(some_characters(), unk_token="\ufffd"),
}
