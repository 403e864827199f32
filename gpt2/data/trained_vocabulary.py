"""Vocabularies made from texts: their characters, or byte pairs."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gpt2.data.decoders import BYTES
from gpt2.data.vocabulary import Vocabulary
from gpt2.errors import UserError
from gpt2.formats.tokenizer_folder import END_OF_TEXT, SETTINGS, TOKENIZER, TokenizerFolder, as_json

LARGEST = 2**16  # token files hold uint16
END_OF_TURN = "<|end|>"
CHAT_TOKENS = (
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    END_OF_TURN,
)  # what chat_template.jinja writes besides <|endoftext|>
RESERVED = (END_OF_TEXT, *CHAT_TOKENS)  # the last tokens of vocabularies made here


def characters(texts):
    """Returns a Vocabulary of all characters in the texts, an iterable of str, and the RESERVED control tokens."""
    found, most = sorted(set().union(*texts)), LARGEST - len(RESERVED)
    if len(found) > most:
        raise UserError(f"{len(found):,} different characters: a vocabulary has at most {most:,}; use bpe:N")
    numbers = {character: number for number, character in enumerate(found)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _finished(tokenizer)


def byte_pairs(texts, size):
    """Returns a byte-level BPE Vocabulary of `size` tokens, trained on the texts, an iterable of str.

    Words are split as GPT-2 splits them. The tokens are the 256 bytes, merges and the RESERVED control tokens; the same
    texts give the same vocabulary. Raises UserError if the texts have fewer pairs, or `size` is not 261 to 65,536.
    """
    smallest = BYTES + len(RESERVED)
    if not smallest <= size <= LARGEST:
        what = f"the bytes and {len(RESERVED)} control tokens"
        raise UserError(f"bpe:{size}: choose a size from {smallest} ({what}) to {LARGEST:,}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, count = sorted(pre_tokenizers.ByteLevel.alphabet()), size - len(RESERVED)
    # The library puts control tokens first; here they come last, as GPT-2's does.
    trainer = trainers.BpeTrainer(vocab_size=count, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < count:
        possible = tokenizer.get_vocab_size() + len(RESERVED)
        raise UserError(f"bpe:{size}: the text allows {possible:,} tokens; choose at most that many, or a longer text")
    return _finished(tokenizer)


def _finished(tokenizer):
    tokenizer.add_special_tokens(list(RESERVED))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    files = {TOKENIZER: tokenizer.to_str(pretty=True).encode(), SETTINGS: as_json(settings)}
    tokenizer.encode_special_tokens = True  # a text that spells a control token does not contain it
    end = tokenizer.token_to_id(END_OF_TEXT)
    return Vocabulary(TokenizerFolder(files, tokenizer=tokenizer, begin=end, ends=(end,)))
