"""Trains GPT-2 on the CPU. `gpt2 train --help` lists the options; the loop is loop.py."""

import time

from gpt2 import distributed
from gpt2.arguments import command_parser
from gpt2.errors import run_command
from gpt2.training.options import TrainOptions, add_arguments


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "train",
        "Starts from GPT-2's released weights unless --init says otherwise.",
        epilog="Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU stop the run after the current step: it is saved "
        "and the exit status is 128 + the signal's number. A second Ctrl-C or SIGTERM ends the process at once.",
    )
    add_arguments(parser)
    group = parser.add_argument_group("resuming")
    group.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="DIR",
        help="continue from the newest checkpoint in DIR or --out-dir; options given anew override that run's",
    )
    group.add_argument("--resume-anyway", action="store_true", help="resume even if options or data differ")
    return parser


def parse_arguments(arguments=None):
    """Returns (options given, a dict; the folder to resume from or None; whether to resume anyway)."""
    parser = make_parser()
    given = vars(parser.parse_args(arguments))
    folder, anyway = given.pop("resume"), given.pop("resume_anyway")
    if anyway and folder is None:
        parser.error("--resume-anyway goes with --resume")
    if folder == "":  # as from a shell variable that is not set
        parser.error("--resume '': expected a folder, or nothing for --out-dir")
    return given, given.get("out_dir", "out") if folder is True else folder, anyway


def main(arguments=None):
    """Trains as the command line says; returns the exit status."""
    started, world = time.perf_counter(), distributed.world()
    given, folder, anyway = distributed.parsed_on_all(world, parse_arguments, arguments)
    with world.together():
        options = TrainOptions(**given)
    from gpt2.training import report
    from gpt2.training.loop import resume, train

    result = train(options) if folder is None else resume(folder, given, anyway)
    minutes = (time.perf_counter() - started) / 60
    peaks = world.gather(report.peak_bytes())
    with world.as_one():
        memory = f"peak memory {max(peaks) / 1e9:.2f} GB{' of a rank' if world.size > 1 else ''}"
        print(f"{result.state.step} steps, {minutes:.1f} minutes, {memory}", flush=True)
    return result.exit_status


if __name__ == "__main__":
    run_command(main, output_required=False)
