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


def scaling_tables(entry):
    """Returns the tables of scaling.py to print; a missed goal ends in "!"."""
    parts = ("step_ms", "gradients_ms", "update_ms", "exchange_ms")
    steps = [("ranks", *(f"{part.removesuffix('_ms')}, ms" for part in parts), "peak, GB a rank")]
    for ranks, found in entry["steps"].items():
        steps.append((ranks, *(f"{found[part]:,.1f}" for part in parts), f"{found['peak_bytes'] / 1e9:.2f}"))
    ratio = entry["ratio"]
    missed = "" if ratio["median"] <= ratio["target"] else " !"
    goal = f"step, 2 ranks / 1: {_spread(ratio, 3)}, target <={ratio['target']:.2f}{missed}"
    exchanges = [("exchange", "", "ms", "lowest", "target", "GB/s")]
    for way, kinds in entry["exchanges"].items():
        for kind, found in kinds.items():
            target = found["target_ms"]
            missed = "" if target is None or found["ms"] <= target else " !"
            target = "" if target is None else f"<={target:.0f}{missed}"
            ms, lowest = (f"{found[name]:.1f}" for name in ("ms", "lowest_ms"))
            exchanges.append((way, kind, ms, lowest, target, f"{found['gb_per_s']:.2f}"))
    return f"{_aligned(steps)}\n\n{goal}\n\n{_aligned(exchanges)}"


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


def draw_scaling(entry, path):
    """Plots the efficiency that scaling.py reckoned by nodes, with what it measured on 2 ranks, and the exchanges."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for i, (name, line) in enumerate(entry["reckoned"].items()):
        colour, style = f"C{i % 3}", "-" if i < 3 else "--"
        left.plot([int(nodes) for nodes in line], [100 * value for value in line.values()], style, color=colour)
        left.lines[-1].set_label(f"reckoned: {name}")
    ratio = entry["ratio"]
    measured, best, worst = (100 / ratio[name] for name in ("median", "lowest", "highest"))
    left.errorbar(2, measured, yerr=[[measured - worst], [best - measured]], fmt="o", color="black", capsize=4)
    tokens = entry["B"] * entry["T"] * entry["accumulation"]
    left.containers[-1].set_label(f"measured: 2 ranks of 1 thread in one machine, {tokens:,} tokens a step")
    left.set_xscale("log", base=2)
    left.set_xticks([2**i for i in range(11)], [2**i for i in range(11)])
    left.set_ylim(0, max(105, best + 5))
    left.set_xlabel("nodes")
    left.set_title("efficiency in %, strong scaling, 524,288 tokens a step")
    left.grid(alpha=0.3)
    left.legend(loc="lower left", fontsize=8)
    bars = [(f"{way}, {kind}", found) for way, kinds in entry["exchanges"].items() for kind, found in kinds.items()]
    for y, (_, found) in enumerate(bars):
        right.barh(y, found["ms"], color="lightgrey" if found["target_ms"] is None else "tab:blue")
        text = f"{found['ms']:.0f}"
        right.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        target = np.nan if found["target_ms"] is None else found["target_ms"]
        right.plot(target, y, "|", color="black", markersize=18, markeredgewidth=2, label="" if y else "target")
    right.set_yticks(range(len(bars)), [name for name, _ in bars])
    right.set_ylim(len(bars) - 0.5, -0.5)
    right.grid(axis="x", alpha=0.3)
    right.legend(loc="upper right")
    right.set_title(f"measured: exchange of {entry['parameters'] / 1e6:.0f}M floats, ms")
    figure.savefig(path, dpi=120)
