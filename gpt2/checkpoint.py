"""Lists the checkpoints of a run, every byte verified: `gpt2 checkpoint DIR`."""

from gpt2.arguments import command_parser
from gpt2.errors import run_command


def make_parser():
    """Returns the Parser."""
    parser = command_parser("checkpoint", "Every byte is read. --resume takes the one marked *.")
    parser.add_argument("folder", metavar="DIR", help="the output folder of a run")
    return parser


def main(arguments=None):
    options = make_parser().parse_args(arguments)
    from gpt2.training.checkpoint import list_checkpoints

    list_checkpoints(options.folder)


if __name__ == "__main__":
    run_command(main)
