"""Makes token files from texts or conversations of your own: files or folders, compressed or not."""

from gpt2.arguments import add_data_dir, command_parser
from gpt2.data.chat_preparation import prepare_conversations
from gpt2.data.preparation import prepare_texts
from gpt2.data.texts import Form
from gpt2.errors import UserError, run_command


def make_parser():
    """Returns the Parser."""
    parser = command_parser("prepare")
    inputs = "texts: .txt, .md, .jsonl, .json, .csv, also with .gz or .zst; folders of them; globs; - (standard input)"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    parser.add_argument("--name", required=True, metavar="NAME", help="makes NAME_train.bin and NAME_val.bin")
    vocab = "vocabulary: GPT-2's, the texts' characters, N byte pairs of the texts, or that of a folder (default: gpt2)"
    parser.add_argument("--vocab", default="gpt2", metavar="gpt2|chars|bpe:N|FOLDER", help=vocab)
    chat = "the inputs are conversations: messages, Alpaca or ShareGPT records, or lines of User: and Assistant:"
    parser.add_argument("--chat", action="store_true", help=chat)
    documents = "what a document is in plain text (default: file)"
    parser.add_argument("--documents", metavar="file|line|paragraph|SEPARATOR", help=documents)
    field = "field of a JSON record that holds its text (default: text)"
    parser.add_argument("--text-field", metavar="FIELD", help=field)
    column = "column of a CSV file (default: text, or the only one)"
    parser.add_argument("--text-column", metavar="COLUMN", help=column)
    fraction = "part of the tokens for validation, 0: none (default: %(default)s)"
    parser.add_argument("--val-fraction", type=float, default=0.1, metavar="X", help=fraction)
    at = "where that part is taken (default: %(default)s)"
    parser.add_argument("--val-at", choices=("start", "end"), default="end", help=at)
    add_data_dir(parser)
    parser.add_argument("--force", action="store_true", help="replace what an earlier call made under this name")
    return parser


def main(arguments=None):
    given = make_parser().parse_args(arguments)
    val = given.val_fraction, given.val_at
    if given.chat:
        for option in ("documents", "text_field", "text_column"):
            if getattr(given, option) is not None:
                raise UserError(f"--{option.replace('_', '-')} is for texts; leave it out with --chat")
        prepare_conversations(given.inputs, given.name, given.vocab, given.data_dir, *val, given.force)
        return
    form = Form(given.documents, given.text_field or "text", given.text_column)
    prepare_texts(given.inputs, given.name, given.vocab, form, given.data_dir, *val, given.force)


if __name__ == "__main__":
    run_command(main)
