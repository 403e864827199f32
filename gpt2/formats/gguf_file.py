"""GGUF, the model files of llama.cpp, Ollama and LM Studio: GPT-2's weights with their vocabulary. Written only."""

import contextlib
import json
import math
import pathlib

import numpy as np
from tokenizers import pre_tokenizers

from gpt2.errors import UserError
from gpt2.formats.files import atomic_write
from gpt2.formats.huggingface import LAYER_NORM_EPSILON
from gpt2.formats.llmc import BFLOAT16_LARGEST
from gpt2.formats.tokenizer_folder import token_list
from gpt2.layout import MATRICES, parameter_layout

MAGIC = b"GGUF"
# dtype -> (GGML type, llama.cpp's file type, largest magnitude). Q8_0 scales blocks of 32 by a float16, max / 127.
DTYPES = {
    "float32": ("F32", "ALL_F32", np.finfo(np.float32).max),
    "bfloat16": ("BF16", "MOSTLY_BF16", BFLOAT16_LARGEST),
    "float16": ("F16", "MOSTLY_F16", np.finfo(np.float16).max),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0", 127 * np.float32(np.finfo(np.float16).max)),
}
# Our tensor name -> llama.cpp's; {} is the layer. Without output.weight, the classifier shares token_embd.weight.
NAMES = {
    "wte": "token_embd.weight",
    "wpe": "position_embd.weight",
    "ln1w": "blk.{}.attn_norm.weight",
    "ln1b": "blk.{}.attn_norm.bias",
    "qkvw": "blk.{}.attn_qkv.weight",
    "qkvb": "blk.{}.attn_qkv.bias",
    "attprojw": "blk.{}.attn_output.weight",
    "attprojb": "blk.{}.attn_output.bias",
    "ln2w": "blk.{}.ffn_norm.weight",
    "ln2b": "blk.{}.ffn_norm.bias",
    "fcw": "blk.{}.ffn_up.weight",
    "fcb": "blk.{}.ffn_up.bias",
    "fcprojw": "blk.{}.ffn_down.weight",
    "fcprojb": "blk.{}.ffn_down.bias",
    "lnfw": "output_norm.weight",
    "lnfb": "output_norm.bias",
}
ROUNDED = set(MATRICES) - {"wpe"}  # the others stay float32, as llama.cpp's converter has them
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
NO_MERGE = "ÿ ÿ"  # llama.cpp wants a merge; the bytes FF FF are in no text
CHARACTER_SPLIT = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}


def library():
    """Returns the gguf package. Raises UserError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("writing GGUF needs the gguf package: pip install gguf") from error
    return gguf


def check_writable(config, dtype, vocabulary):
    """Raises UserError for what `save_gguf` would refuse, whatever the parameters. Returns `token_table`'s result."""
    library()
    if dtype == "q8_0" and config.C % 32:
        raise UserError(f"--dtype q8_0: it has blocks of 32 channels, the model {config.C} channels; use bfloat16")
    return token_table(vocabulary, config.V)


def save_gguf(path, config, params, dtype, vocabulary, template=None):
    """Writes a GGUF file atomically, converting one tensor at a time.

    params: float32 (parameter_layout(config).size,). dtype: a key of DTYPES; biases, layernorms and position
    embeddings are float32 in any case. vocabulary: a TokenizerFolder with a tokenizer. template: of conversations, a
    str, or None. Raises UserError on an I/O error, for a vocabulary that a GGUF file cannot express, for a parameter
    too large for dtype, and for q8_0 unless C is a multiple of 32.
    """
    gguf, path = library(), pathlib.Path(path)
    kind, file_type, _ = DTYPES[dtype]
    words = check_writable(config, dtype, vocabulary)
    with atomic_write(path) as file, contextlib.closing(gguf.GGUFWriter(file.name, "gpt2")) as writer:
        writer.add_name(path.stem)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_context_length(config.maxT)
        writer.add_embedding_length(config.C)
        writer.add_block_count(config.L)
        writer.add_feed_forward_length(4 * config.C)
        writer.add_head_count(config.NH)
        writer.add_layer_norm_eps(LAYER_NORM_EPSILON)
        _add_vocabulary(writer, words, vocabulary, template)
        _write_tensors(writer, gguf, list(_tensors(config, params, kind)), dtype)


def _tensors(config, params, kind):
    """Yields (our name, llama.cpp's, GGML type, float32 view of params) for every tensor of the file, in order."""
    for name, tensor in parameter_layout(config).views(params).items():
        stored = kind if name in ROUNDED else "F32"
        if "{}" not in NAMES[name]:
            yield name, NAMES[name], stored, tensor[: config.V] if name == "wte" else tensor
            continue
        for layer in range(config.L):
            yield f"{name} of layer {layer}", NAMES[name].format(layer), stored, tensor[layer]


def _write_tensors(writer, gguf, tensors, dtype):
    types = gguf.GGMLQuantizationType
    for _, name, kind, tensor in tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[types[kind]]
        size = math.prod(tensor.shape) // block * block_bytes
        writer.add_tensor_info(name, tensor.shape, tensor.dtype, size, types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ours, _, kind, tensor in tensors:
        if kind != "F32" and max(tensor.max(), -tensor.min()) > DTYPES[dtype][2]:
            raise UserError(f"tensor {ours} has a parameter too large for {dtype}; use --dtype float32")
        writer.write_tensor_data(gguf.quants.quantize(tensor, types[kind]))


# Vocabularies.


def token_table(vocabulary, V):
    """Returns (tokens, types, merges) of a vocabulary as llama.cpp's byte-level BPE "gpt2" has them.

    tokens: the names of V tokens, a list of str, those that the vocabulary lacks being "[PAD17]" for id 17. types: the
    name of each in gguf.TokenType. merges: a list of str. Characters become byte pairs that merge only into them, so
    the texts' tokens are the same. vocabulary: a TokenizerFolder with a tokenizer. Raises UserError if it has more than
    V tokens, none that ends a text, or splits texts as neither GPT-2 nor `chars` does.
    """
    where = vocabulary.path or "the model"
    names, form = token_list(vocabulary.tokenizer), json.loads(vocabulary.tokenizer.to_str())
    if len(names) > V:
        raise UserError(f"{where}: its vocabulary has {len(names):,} tokens, more than the model's {V:,}")
    if strange := [id for id in (vocabulary.begin, *vocabulary.ends) if id is not None and id >= V]:
        raise UserError(f"{where}: a text is to begin or end with token {strange[0]}, and the model has {V:,} tokens")
    if not vocabulary.ends:
        raise UserError(f"{where}: its vocabulary has no token that ends a text, which a GGUF file needs")
    added = vocabulary.tokenizer.get_added_tokens_decoder()
    expressible = vocabulary.prefix in ((), (vocabulary.begin,))
    if expressible and _is_byte_level(form):
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in form["model"]["merges"]]
    elif expressible and _is_of_characters(form):
        names = [name if id in added or name is None else _in_byte_level(name) for id, name in enumerate(names)]
        # A character of the bytes "abc" is made of "ab" and "c", and "ab" of "a" and "b".
        characters = map(_in_byte_level, form["model"]["vocab"])
        merges = sorted({f"{name[:n]} {name[n]}" for name in characters for n in range(1, len(name))})
    else:
        raise UserError(
            f"{where}: a GGUF file cannot express its tokenizer, only a byte-level BPE that splits words as GPT-2's, "
            "and characters"
        )
    names += [None] * (V - len(names))
    types = ["UNUSED" if name is None else "NORMAL" for name in names]
    for id, token in added.items():
        types[id] = "CONTROL" if token.special else "USER_DEFINED"
    for id in vocabulary.ends:
        types[id] = "CONTROL"
    names = [f"[PAD{id}]" if name is None else name for id, name in enumerate(names)]
    return names, types, merges or [NO_MERGE]


def _is_byte_level(form):
    """Returns whether a tokenizer.json, a dict, is a byte-level BPE that splits texts as GPT-2's does."""
    model = form["model"]
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    plain = form["normalizer"] is None and not any(model.get(option) for option in options)
    return model["type"] == "BPE" and plain and _has(form["pre_tokenizer"], GPT2_SPLIT)


def _is_of_characters(form):
    """Returns whether a tokenizer.json, a dict, is one of `prepare --vocab chars`."""
    model = form["model"]
    single = model["type"] == "WordLevel" and all(len(name) == 1 for name in model["vocab"])
    return single and form["normalizer"] is None and _has(form["pre_tokenizer"], CHARACTER_SPLIT)


def _has(fields, expected):
    return fields is not None and expected.items() <= fields.items()


def _in_byte_level(text):
    """Returns a text as GPT-2's files write its bytes, a character for each."""
    ((out, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return out


def _add_vocabulary(writer, words, vocabulary, template):
    tokens, types, merges = words
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([library().TokenType[kind] for kind in types])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary.begin)
    writer.add_add_bos_token(vocabulary.prefix == (vocabulary.begin,))
    ends = writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id
    for add, id in zip(ends, vocabulary.ends, strict=False):  # a file has room for three
        add(id)
    if template is not None:
        writer.add_chat_template(template)
