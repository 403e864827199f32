"""Makes a page of a training run. `gpt2 report --help` lists the options."""

import pathlib

from gpt2.arguments import command_parser
from gpt2.errors import run_command
from gpt2.formats.run import REPORT


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "report",
        "One HTML file about a run, finished or not: losses, gradient norms, learning rate, speed, samples and "
        "options, from its metrics and its newest checkpoint. An earlier report is replaced.",
    )
    parser.add_argument("folder", metavar="DIR", help="the output folder of a run")
    help_text = f"the page to write (default: {REPORT} in the run's folder)"
    parser.add_argument("--output", "-o", metavar="FILE.html", help=help_text)
    return parser


def main(arguments=None):
    options = make_parser().parse_args(arguments)
    from gpt2.pages import page, run_page

    output = options.output or pathlib.Path(options.folder, REPORT)
    page.require_free(output, run_page.KIND, force=True)
    written, step = run_page.report(options.folder)
    page.write(output, written)
    print(f"wrote {output}: the run up to step {step:,}, {len(written) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
