"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.speed.grid import Cell, Grid
from benchmarks.speed.problem import Builder
from benchmarks.speed.tools import TOOLS
from benchmarks.speed.tools.tool import WORK

#: Runs below which a cell is marked.
MANY = 15


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def time_cell(cell: Cell | None) -> str:
    """Median and quartiles; how much was measured, where that is not all."""
    if cell is None:
        return ""
    found = cell.get("ratios")
    if found is None:
        return "wrong" if cell["status"] == "wrong" else "–"
    few = "†" if found["runs"] < MANY else ""
    part = f" ({cell['measured']}/{cell['parameters']})" if 0 < cell["measured"] < cell["parameters"] else ""
    digits = 2 if found["median"] < 9.95 else 0
    low, middle, high = (f"{found[name]:.{digits}f}" for name in ("low", "median", "high"))
    return f"{middle}{few}{part}<br><sub>{low}–{high}</sub>"


def time_table(grid: Grid, models: Mapping[str, Builder]) -> str:
    """Ratios to a plain step, work by work."""
    rows: list[list[str]] = []
    for work in list(WORK)[1:]:
        tools = grid.tools(work)
        if tools:
            rows.append([f"**{WORK[work]}**", *[""] * len(grid.models)])
        rows += [[TOOLS[tool].title, *[time_cell(grid.times.get((m, tool))) for m in grid.models]] for tool in tools]
    plain = ["plain step, ms", *[_milliseconds(grid.times.get((model, "plain"))) for model in grid.models]]
    return markdown(["ratio to a plain step", *[models[model].title for model in grid.models]], [plain, *rows])


def _milliseconds(cell: Cell | None) -> str:
    return "" if cell is None or "plain" not in cell else f"{cell['plain'] * 1e3:.{1 if cell['plain'] < 0.01 else 0}f}"


def mean_table(grid: Grid, models: Mapping[str, Builder]) -> str:
    """What ours cost over many windows."""
    rows = []
    for name, tool in TOOLS.items():
        cells = [grid.times.get((model, name), {}).get("ratios") for model in grid.models]
        if tool.ours and any(cells):
            rows.append([tool.title, *["" if cell is None else f"{cell['mean']:.2f}" for cell in cells]])
    return markdown(["mean over 32 windows", *[models[model].title for model in grid.models]], rows)


def memory_table(grid: Grid, models: Mapping[str, Builder]) -> str:
    """Peak memory of every tool, and of ours once the first window is over."""
    rows = []
    for name, tool in TOOLS.items():
        cells = [_memory(grid, model, name, "first", "later") for model in grid.models]
        if any(cells):
            rows.append([tool.title, *cells])
        if tool.ours and any(cells):
            rows.append([f"{tool.title}, ordinary windows", *[_memory(grid, m, name, "later") for m in grid.models]])
    return markdown(["peak, MB above the built model", *[models[model].title for model in grid.models]], rows)


def _memory(grid: Grid, model: str, tool: str, *parts: str) -> str:
    cell, plain = grid.memory.get((model, tool)), grid.memory.get((model, TOOLS[tool].against))
    if cell is None:
        return ""
    if parts[0] not in cell or grid.times.get((model, tool), {}).get("status") in ("wrong", "not run"):
        return "–"
    own = max(cell[part] for part in parts)
    if plain is None or "first" not in plain:
        return f"{own:.0f}"
    return f"{own:.0f} ({own / max(plain['first'], plain['later'], 1e-9):.2f})"


def reasons(grid: Grid, models: Mapping[str, Builder]) -> str:
    """Why a cell has no number, and what a tool's number is of."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for (model, name), cell in grid.times.items():
        if model in grid.models and cell["status"] in ("wrong", "not run"):
            found.setdefault((name, cell["status"], _plain(cell["reason"])), []).append(models[model].title)
    lines = [f"- {tool.title}: {tool.note}." for name, tool in TOOLS.items() if tool.note and (name in _tried(grid))]
    for (name, status, reason), where in found.items():
        places = "all models" if len(where) == len(grid.models) else "; ".join(where)
        lines.append(f"- {TOOLS[name].title}, {status} on {places}: {reason}")
    return "\n".join(lines)


def _tried(grid: Grid) -> set[str]:
    return {tool for _, tool in grid.times}


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "‹").replace(">", "›").replace("\n", " ")


def contests(grid: Grid) -> Iterator[tuple[str, str, str, float, str, float]]:
    """Per work and model: our fastest and the fastest peer whose figures are of all parameters."""
    for work in ("norms", "moments"):
        for model in grid.models:
            timed = [
                (ratio, tool)
                for tool in grid.tools(work)
                if (ratio := grid.median(model, tool)) is not None and grid.complete(model, tool)
            ]
            ours = min((each for each in timed if TOOLS[each[1]].ours), default=None)
            theirs = min((each for each in timed if not TOOLS[each[1]].ours), default=None)
            if ours and theirs:
                yield work, model, ours[1], ours[0], theirs[1], theirs[0]


def contest_table(grid: Grid, models: Mapping[str, Builder]) -> str:
    """Who is ahead, where both measure everything; within 2 % counts as level."""
    rows = []
    for work, model, ours, own, theirs, other in contests(grid):
        who = "level" if abs(own / other - 1) <= 0.02 else "gradscope" if own < other else "**the peer**"
        rows.append(
            [
                WORK[work],
                models[model].title,
                f"{TOOLS[ours].title} {own:.2f}",
                f"{TOOLS[theirs].title} {other:.2f}",
                who,
            ]
        )
    return markdown(["work", "model", "ours", "fastest peer", "ahead"], rows)
