"""Makes a page of what a model thinks of a text. `gpt2 inspect --help` lists the options."""

from gpt2.arguments import add_model, add_threads, command_parser
from gpt2.errors import run_command
from gpt2.machine import set_threads
from gpt2.pages import MOST_TOKENS


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "inspect",
        "One HTML file: each token's loss, probability and likelier tokens, the attention of every head, what each "
        "layer would predict, and the residual stream's norms.",
    )
    add_model(parser, parser)
    add = parser.add_argument
    add("--text", required=True, metavar="TEXT", help=f"text of at most {MOST_TOKENS} tokens")
    add(
        "--against",
        metavar="NAME|FILE.bin|DIR",
        help="a second model of the same vocabulary, such as another checkpoint of the run, shown beside the first",
    )
    add("--output", "-o", required=True, metavar="FILE.html", help="the page to write")
    add("--force", action="store_true", help="replace an existing page")
    add_threads(parser)
    return parser


def main(arguments=None):
    options = make_parser().parse_args(arguments)
    from gpt2.pages import inspection, page

    set_threads(options.threads)
    page.require_free(options.output, inspection.KIND, options.force)
    written, count, losses = inspection.inspect(options.model, options.text, options.against)
    page.write(options.output, written)
    shown = "".join(f", loss {loss:.4f}" for loss in losses if loss is not None)
    print(f"wrote {options.output}: {count} token{'s' if count > 1 else ''}{shown}, {len(written) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
