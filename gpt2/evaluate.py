"""Evaluates a model on token files and HellaSwag. `gpt2 evaluate --help` lists the options."""

import contextlib
import json
import os
import pathlib
import sys
import zlib

from gpt2 import distributed
from gpt2.arguments import add_model, add_threads, command_parser
from gpt2.data.dataloader import DataLoader, expand
from gpt2.data.hellaswag import count_examples
from gpt2.data.vocabulary import GPT2Vocabulary, agreed_vocabulary, extends, model_vocabulary
from gpt2.distributed import SERIAL
from gpt2.errors import UserError, from_os_error, run_command
from gpt2.formats.files import atomic_write, open_to_read, sha256
from gpt2.formats.run import parse_json_object
from gpt2.inference.evaluation import (
    LLMC_B,
    LLMC_BATCHES,
    LLMC_T,
    evaluate_hellaswag,
    evaluate_split,
    llmc_val_loss,
    token_lengths,
)
from gpt2.machine import available_threads, set_threads
from gpt2.output import lossy_output

EARLIER_LIMIT = 2**24  # bytes of earlier results, which name all their files
NAMED = 5  # conversations that are left out
BATCH_TOKENS = 1024  # in a batch by default: enough rows for matrix products to run at full speed


def make_parser():
    """Returns the Parser."""
    parser = command_parser("evaluate")
    add_model(parser, parser)
    add = parser.add_argument
    help_data = "token files or globs; each file is an independent text"
    add("--data", nargs="+", action="extend", metavar="FILE", help=help_data)
    add(
        "--stride",
        type=int,
        metavar="S",
        help="evaluate as Hugging Face's recipe for perplexity does: windows of T tokens advance by S, so after a "
        "file's first window predictions have at least T - S tokens of context, at T / S times the cost (default: "
        "adjacent windows as in training, of T tokens and the one that follows)",
    )
    add("--batch-size", "-b", type=int, metavar="B", help=f"windows per batch (default: about {BATCH_TOKENS} tokens)")
    add("--seq-len", "-t", type=int, metavar="T", help="tokens per window (default: the model's context length)")
    add(
        "--compat",
        choices=["llmc"],
        help=f"llmc: print the validation loss that llm.c prints, the mean of the first {LLMC_BATCHES} batches "
        f"({LLMC_B} x {LLMC_T} unless -b and -t are given)",
    )
    add("--hellaswag", metavar="FILE", help="multiple-choice examples in llm.c's evaluation format")
    add(
        "--chat",
        metavar="FILE",
        help="conversations: the loss of the assistant's words, and how many answers the model gives word for word "
        "under greedy decoding",
    )
    add(
        "--json",
        metavar="FILE",
        help="write the results as JSON, replacing earlier ones in FILE; - for standard output, which then carries "
        "nothing else",
    )
    add_threads(parser)
    return parser


def parse_arguments(arguments=None):
    """Returns the options as a namespace. Raises UserError for values that no model allows."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not (options.data or options.hellaswag or options.chat):
        parser.error("nothing to evaluate: give --data, --hellaswag or --chat")
    if options.compat and (not options.data or options.stride is not None):
        parser.error("--compat requires --data and excludes --stride")
    numbers = {"--batch-size": options.batch_size, "--seq-len": options.seq_len, "--stride": options.stride}
    for option, value in numbers.items():
        if value is not None and not options.data:
            parser.error(f"{option} goes with --data")
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: expected 1 or more")
    return options


def evaluate(options, world=SERIAL):
    """Runs the evaluations that the options name, prints the results, and returns them as a dict for JSON.

    The ranks of a distributed.World share out --data, without --compat, and --hellaswag; the rest each does in full.
    """
    from gpt2.inference.chat_evaluation import evaluate_chat, read_talks
    from gpt2.inference.warmup import prepare_kernels_on_all
    from gpt2.model import GPT2

    model = GPT2.from_pretrained(options.model, writable=False)
    if options.hellaswag:
        count_examples(options.hellaswag, model.config)  # report a bad file before spending time on --data
    vocabulary = _checked_vocabulary(model, options)
    talks = read_talks(options.chat, vocabulary, model.config) if options.chat else None
    _require_same(world, model, options)
    prepare_kernels_on_all(world)
    results = {"model": options.model}
    if options.data and options.compat:
        results["llmc"] = _evaluate_as_llmc(model, options)
    elif options.data:
        results["data"] = _evaluate_data(model, vocabulary, options, world)
    if options.hellaswag:
        results["hellaswag"] = {"file": options.hellaswag} | evaluate_hellaswag(model, options.hellaswag, world)
        _print_hellaswag(results["hellaswag"])
    if talks:
        results["chat"] = {"file": options.chat} | evaluate_chat(model, vocabulary, talks)
        _print_chat(results["chat"])
    return results


def _require_same(world, model, options):
    """Raises UserError if a rank has other options, files or versions."""
    if world.size == 1:
        return
    from gpt2.training.resume import code_versions

    values = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items() if name != "threads"}
    files = {"--data": expand(options.data or []), "--hellaswag": [options.hellaswag] if options.hellaswag else []}
    contents = {f"what {name} names": [sha256(path) for path in paths] for name, paths in files.items()}
    world.require_same(code_versions() | values | contents | {"the model": zlib.crc32(model.params_flat)})


def _checked_vocabulary(model, options):
    """Returns the model's vocabulary. Raises UserError if what it is evaluated on is of another."""
    vocabulary = model_vocabulary(options.model)
    if options.hellaswag and not vocabulary.problem and not extends(vocabulary, GPT2Vocabulary()):
        raise UserError(f"{options.hellaswag}: tokens of GPT-2's vocabulary, but the model has another")
    return agreed_vocabulary(vocabulary, model.config.V, expand(options.data or []))


def _evaluate_as_llmc(model, options):
    B, T = options.batch_size or LLMC_B, options.seq_len or LLMC_T
    _check_length(T, model.config)
    loss = llmc_val_loss(model, options.data, B, T)
    print(f"val loss {loss:.6f}")
    return {"files": options.data, "B": B, "T": T, "batches": LLMC_BATCHES, "val_loss": loss}


def _evaluate_data(model, vocabulary, options, world):
    config = model.config
    T = options.seq_len or config.maxT
    _check_length(T, config)
    stride = options.stride
    if stride is not None and T < 2:
        raise UserError(f"--seq-len {T}: --stride takes windows of at least 2 tokens")
    if stride is not None and stride > T:
        raise UserError(f"--stride {stride}: expected 1 to {T}, the window length")
    shards = DataLoader(options.data, 1, 1, config.V).shards
    try:
        token_bytes = token_lengths(vocabulary, config.V)
    except UserError as error:
        print(f"no bits per byte: {error}")
        token_bytes = None
    B = options.batch_size or max(1, BATCH_TOKENS // T)
    result = {"files": options.data, "T": T, "stride": stride}
    result |= evaluate_split(model, shards, B, T, stride, token_bytes, world)
    _print_split(result)
    return result


def _check_length(T, config):
    if config.maxT < T:
        raise UserError(f"--seq-len {T}: the model's context length is {config.maxT}")


def _print_split(result):
    stride = "" if result["stride"] is None else f", stride {result['stride']}"
    print("{tokens:,} tokens predicted, windows of {T}".format(**result) + stride)
    print(f"loss {result['loss']:.6f}{_plus_minus(result['standard_error'])} nats per token")
    if result["perplexity"] is not None:
        print(f"perplexity {result['perplexity']:.4f}")
    if result["bits_per_byte"] is not None:
        print("bits per byte {bits_per_byte:.6f} over {bytes:,} bytes".format(**result))


def _print_hellaswag(result):
    print(f"HellaSwag, {result['examples']:,} examples")
    print(f"accuracy {result['accuracy']:.4f}{_plus_minus(result['standard_error'])}")
    print(f"length-normalised accuracy {result['accuracy_norm']:.4f}{_plus_minus(result['standard_error_norm'])}")


def _print_chat(result):
    long = result["too_long"]
    if long:
        named = ", ".join(long[:NAMED]) + (", ..." if len(long) > NAMED else "")
        print(f"left out, as longer than the context: {len(long):,} of {result['conversations']:,}: {named}")
    print("{tokens:,} tokens of the assistant in {conversations:,} conversations".format(**result))
    print(f"loss {result['loss']:.6f}{_plus_minus(result['standard_error'])} nats per token")
    print("token accuracy {accuracy:.4f}".format(**result))
    print("exact answers {exact:,} of {answers:,}, ended by the model {ended:,}".format(**result))


def _plus_minus(error):
    return "" if error is None else f" +- {error:.4f}"


def main(arguments=None):
    world = distributed.world()
    with world.together():
        options = distributed.parsed_on_all(world, parse_arguments, arguments)
    with world.as_one(), world.together():
        _evaluate_and_write(options, world)


def _evaluate_and_write(options, world):
    set_threads(max(1, available_threads() // world.sharers) if options.threads is None else options.threads)
    if options.json is None:
        evaluate(options, world)
    elif options.json == "-":
        with contextlib.redirect_stdout(sys.stderr if world.is_first else sys.stdout):
            results = evaluate(options, world)
        print(_as_json(results))
    else:
        path = _results_path(options.json) if world.is_first else None
        with lossy_output(then_raise=True):
            results = evaluate(options, world)
            if world.is_first:
                _write(path, _as_json(results) + "\n")


def _as_json(results):
    return json.dumps(results, indent=2, allow_nan=False)


def _results_path(name):
    """Returns the path of the output. Fails early if it is not writable, or a file that is no earlier output."""
    path = pathlib.Path(name)
    if path.is_dir():
        raise UserError(f"--json {path}: is a folder, expected a file")
    if _is_special(path):
        return path
    if path.is_symlink():
        path = pathlib.Path(os.path.realpath(path))  # the link stays
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: cannot create a file in {path.parent}; choose another")
    if path.exists():
        with open_to_read(path) as file:
            earlier = file.read(EARLIER_LIMIT)
        if earlier and not isinstance(parse_json_object(earlier).get("model"), str):
            raise UserError(f"--json {path}: not the results of an evaluation, so it is not replaced; choose another")
    return path


def _is_special(path):
    """Returns whether a path is that of a device or a pipe, which is written to rather than replaced."""
    return path.exists() and not path.is_file()


def _write(path, text):
    if not _is_special(path):
        with atomic_write(path) as file:
            file.write(text.encode())
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, path) from error


if __name__ == "__main__":
    run_command(main)
