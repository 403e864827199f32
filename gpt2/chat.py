"""A conversation with a model. `gpt2 chat --help` lists the options."""

import sys

from gpt2.arguments import add_model, add_sampling, add_threads, add_weights, command_parser
from gpt2.data.tokenizer import decode_text
from gpt2.data.vocabulary import model_vocabulary
from gpt2.errors import UserError, run_command
from gpt2.inference.chat import Chat
from gpt2.inference.chat_session import HELP, Session
from gpt2.inference.sampling import Sampling, check_count, check_seed
from gpt2.machine import set_threads

TEMPERATURE, TOP_K, MAX_NEW_TOKENS = 0.6, 50, 256  # by default
UNTUNED = (
    "{}: has no chat template, so it was not tuned on conversations: it continues a dialogue of User and Assistant as "
    "text; do not expect answers"
)


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "chat",
        "From standard input that is no terminal, each line is a message or a command; answers go to standard output, "
        "all else to standard error.",
        epilog=f"commands:\n{HELP}",
    )
    group = parser.add_argument_group("model and message")
    add_model(parser, group)
    add_weights(group)
    group.add_argument("--prompt", "-p", metavar="QUESTION", help="answer this and exit")
    add_sampling(parser, TEMPERATURE, TOP_K)
    group = parser.add_argument_group("length and output")
    add = group.add_argument
    help_text = f"limit for each answer (default: {MAX_NEW_TOKENS})"
    add("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help=help_text)
    add("--speed", action="store_true", help="show the tokens/s of each answer")
    add_threads(group)
    return parser


def parse_arguments(arguments=None):
    """Returns the options as a namespace. Raises UserError for values that are wrong."""
    options = make_parser().parse_args(arguments)
    check_count("--max-new-tokens", options.max_new_tokens)
    check_seed("--seed", options.seed)
    return options


def run(options):
    """Holds the conversation that the options say."""
    from gpt2.inference.context import Context
    from gpt2.inference.warmup import prepare_kernels
    from gpt2.inference.weights import form_of, load

    temperature = TEMPERATURE if options.temperature is None else options.temperature
    top_k = TOP_K if options.top_k is None else options.top_k
    sampling = Sampling(temperature, top_k, options.top_p, options.min_p, options.repetition_penalty)
    set_threads(options.threads)
    question = options.prompt and decode_text(options.prompt.encode("utf-8", "surrogateescape"), "--prompt")
    if question is not None and not question.strip():
        raise UserError("--prompt: the question is empty")
    words = model_vocabulary(options.model)
    if words.problem:
        raise UserError(f"{words.problem}: a conversation requires the model's vocabulary")
    config, weights = load(options.model, options.weights)
    context = Context(config, weights)
    chat = Chat(context, words, sampling, options.max_new_tokens, options.seed)
    prepare_kernels(form_of(weights))
    if chat.template.is_plain:
        _require_plain(options.model, words)
        print(UNTUNED.format(options.model), file=sys.stderr)
    session = Session(chat, options.seed, options.speed)
    if question is not None:
        session.answer(question)
    elif sys.stdin.isatty():
        session.run_terminal()
    else:
        session.run_lines(line.removesuffix("\n") for line in sys.stdin)


def _require_plain(model, words):
    """Raises UserError if a vocabulary of characters lacks one that stands in for a chat template."""
    try:
        words.encode("User:\nAssistant:\nSystem:\n")
    except UserError as error:
        raise UserError(f"{model}: has no chat template, and cannot write User: and Assistant: instead") from error


def main(arguments=None):
    options = parse_arguments(arguments)
    if sys.stdout is None or (options.prompt is None and sys.stdin is None):
        raise UserError("standard input or output is closed; messages are read from one, answers written to the other")
    sys.stdout.reconfigure(encoding="utf-8")
    if options.prompt is None:
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    run(options)


if __name__ == "__main__":
    run_command(main)
