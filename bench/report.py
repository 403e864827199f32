"""The tables and plots of the benchmarks' results."""

import numpy as np
from matplotlib.figure import Figure

COLOURS = {"eager": "tab:blue", "compile": "tab:orange", "ours-float32": "tab:green", "eager-float32": "tab:cyan"}
COLUMNS = (
    ("row and", "mode"),
    ("step, ms", "ours"),
    ("", "theirs"),
    ("time, theirs / ours", "median (low-high)"),
    ("", "target"),
    ("tokens/s", "ours"),
    ("", "theirs"),
    ("peak, GB", "ours"),
    ("", "theirs"),
    ("memory, ours / theirs", "median"),
    ("", "target"),
    ("bare products", "ms"),
    ("", "of our step"),
)


def table(entries):
    """Returns the table to print, a line per row and PyTorch mode; a missed target ends in "!"."""
    lines = [*zip(*COLUMNS, strict=True)]
    for name, entry in entries.items():
        ours, bare = entry["ours"], entry["bare"]
        for mode, theirs in entry["pytorch"].items():
            time, memory, limit = theirs["time"], theirs["memory"], entry["target_bytes"]
            least, most = (theirs.get(name, entry[name]) for name in ("target_ratio", "target_memory"))
            small = most is None or (memory["median"] <= most and (limit is None or ours["peak_bytes"] < limit))
            below = f", <{limit / 1e9:.1f} GB" if limit else ""
            lines.append(
                (
                    f"{name} {mode}",
                    milliseconds(ours),
                    milliseconds(theirs),
                    f"{time['median']:.2f} ({time['lowest']:.2f}-{time['highest']:.2f})",
                    "" if least is None else f">={least:.2f}" + ("" if time["median"] >= least else " !"),
                    f"{ours['tokens_per_s']:,.0f}",
                    f"{theirs['tokens_per_s']:,.0f}",
                    f"{ours['peak_bytes'] / 1e9:.2f}",
                    f"{theirs['peak_bytes'] / 1e9:.2f}",
                    f"{memory['median']:.2f}",
                    "" if most is None else f"<={most:.2f}{below}" + ("" if small else " !"),
                    f"{milliseconds(bare)} {bare['library']}",
                    f"{100 * bare['share']['median']:.0f} %",
                )
            )
    return _aligned(lines)


def generation_tables(entry):
    """Returns the tables of generate.py to print: tokens a second, then the goals; a missed one ends in "!"."""
    names = list(entry["cases"])
    rows = [("tokens/s", *names, "peak, GB")]
    for who, peak in entry["peak_bytes"].items():
        rates = [entry["cases"][name]["tokens_per_s"].get(who) for name in names]
        cells = [_spread(rate, 1) if rate else "" for rate in rates]
        rows.append((who, *cells, f"{peak / 1e9:.2f}"))
    goals = [("speed", "median (low-high)", "target")]
    for goal in entry["goals"]:
        missed = "" if goal["median"] >= goal["target"] else " !"
        goals.append((goal["what"], _spread(goal, 2), f">={goal['target']:.2f}{missed}"))
    return f"{_aligned(rows)}\n\n{_aligned(goals)}"


def _spread(values, digits):
    median, lowest, highest = (f"{values[name]:.{digits}f}" for name in ("median", "lowest", "highest"))
    return f"{median} ({lowest}-{highest})"


def _aligned(lines):
    """Returns lines of cells, all str, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def milliseconds(entry):
    return f"{entry['step_ms']:,.{0 if entry['step_ms'] >= 100 else 1}f}"


def draw(results, folder):
    """Writes compare_time.png and compare_memory.png; results: the contents of compare.json."""
    title = "training step time, theirs / ours: higher is better"
    _draw(results, folder / "compare_time.png", "time", "target_ratio", title, lambda side: f"{milliseconds(side)} ms")
    title = "peak resident memory, ours / theirs: lower is better"
    _draw(
        results,
        folder / "compare_memory.png",
        "memory",
        "target_memory",
        title,
        lambda side: f"{side['peak_bytes'] / 1e9:.2f} GB",
    )


def _draw(results, path, quantity, target, title, figure_of):
    """Plots a line per row and mode: median with whiskers from lowest to highest, and the target."""
    lines = [(name, entry, mode) for name, entry in results.items() for mode in entry["pytorch"]]
    figure = Figure(figsize=(10, 1.5 + 0.4 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for y, (_, entry, mode) in enumerate(lines):
        ratio = entry["pytorch"][mode][quantity]
        whiskers = [[ratio["median"] - ratio["lowest"]], [ratio["highest"] - ratio["median"]]]
        axes.errorbar(ratio["median"], y, xerr=whiskers, fmt="o", color=COLOURS[mode], capsize=4)
        goal = entry["pytorch"][mode].get(target, entry[target])
        axes.plot(
            np.nan if goal is None else goal,
            y,
            "|",
            color="black",
            markersize=18,
            markeredgewidth=2,
            label="" if y else "target",
        )
        text = f"ours {figure_of(entry['ours'])}, theirs {figure_of(entry['pytorch'][mode])}"
        axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_yticks(range(len(lines)), [f"{name}, {mode}" for name, _, mode in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def draw_generation(entry, path):
    """Plots the tokens a second of one text, a bar for each process of generate.py, with the range over the rounds."""
    case = entry["cases"]["text"]
    rates = case["tokens_per_s"]
    figure = Figure(figsize=(10, 1.5 + 0.4 * len(rates)), layout="constrained")
    axes = figure.subplots()
    for y, (who, rate) in enumerate(rates.items()):
        whiskers = [[rate["median"] - rate["lowest"]], [rate["highest"] - rate["median"]]]
        colour = "tab:blue" if who.startswith("ours ") else "lightgrey"
        axes.barh(y, rate["median"], xerr=whiskers, color=colour, capsize=4)
        axes.annotate(f"{rate['median']:.1f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.set_yticks(range(len(rates)), rates)
    axes.set_ylim(len(rates) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    tokens = f"{case['new']} tokens after a prompt of {case['prompt']}"
    axes.set_title(f"tokens a second, {tokens}, {entry['threads']} threads: higher is better")
    figure.savefig(path, dpi=120)
