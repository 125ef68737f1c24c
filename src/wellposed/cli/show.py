"""What the command prints: progress, tables, rows of the catalogue."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from wellposed.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from wellposed.catalog import Row
    from wellposed.claims.experiment import Outcome
    from wellposed.study.compare import Comparison
    from wellposed.study.results import Entry, RunResult
    from wellposed.study.run_folder import RunFolder

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Screen:
    """A progress line on standard error: stage, trials, best figure, time left."""

    def __init__(self, bar: Progress | None) -> None:
        self.bar = bar
        self.task = None if bar is None else bar.add_task("", total=1.0, detail="")
        self.started = time.monotonic()

    def stage(self, text: str) -> None:
        """Name what goes on now."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=escape(text))

    def note(self, text: str) -> None:
        """Print a line above the bar; a leak in red."""
        style = "bold red" if text.startswith("LEAK") else "yellow"
        (self.bar.console if self.bar is not None else err).print(Text(f"  {text}", style=style))

    def trial(self, done: int, planned: int | None, best: str, left: float | None) -> None:
        """Move the bar: by trials if they are counted, else by time."""
        if self.bar is None or self.task is None:
            return
        gone = time.monotonic() - self.started
        share = done / planned if planned else gone / (gone + (left or 0.0))
        time_left = "" if left is None else f", {left:.0f} s left"
        detail = f"trial {done}{f' of {planned}' if planned else ''}, best {best}{time_left}"
        self.bar.update(self.task, completed=min(1.0, share), detail=escape(detail))

    def seed(self, seed: int, figures: Mapping[str, float]) -> None:
        """One seed of a claim's experiment is done."""
        shown = ", ".join(f"{arm} {figure:.4g}" for arm, figure in figures.items())
        (self.bar.console if self.bar is not None else err).print(Text(f"  seed {seed}: {shown}"))


@contextmanager
def progress(*, quiet: bool) -> Iterator[Screen]:
    """A progress bar on standard error for the length of a ``with`` block; silent when ``quiet`` or read by no person.

    Notes are printed in any case.
    """
    if quiet or not err.is_terminal:
        yield Screen(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=err, transient=True) as bar:
        yield Screen(bar)


def result(folder: "RunFolder", found: "RunResult") -> None:
    """The verdict, the leaderboard and where everything is."""
    out.print()
    for sentence in found.verdict:
        out.print(Text(sentence, style="bold"))
    out.print()
    out.print(leaderboard(found))
    out.print()
    out.print(Text(f"recipe  {found.recipe}"))
    out.print(Text(f"report  {folder.report}"))
    out.print(Text(f"predict wellposed predict {folder.path} new.csv -o predictions.csv"))


def leaderboard(found: "RunResult") -> Table:
    """The leaderboard as a table of the screen's width."""
    unit = " %" if found.percent else ""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column(f"validation {found.metric}{unit}", justify="right")
    table.add_column(f"test {found.metric}{unit}", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("seconds", justify="right")
    for entry in found.leaderboard:
        table.add_row(*_cells(entry, found.percent), style="dim" if entry.test is None else "")
    return table


def _cells(entry: "Entry", percent: bool) -> tuple[str, ...]:
    valid = _figure(entry.valid, percent)
    if entry.spread is not None:
        valid += f" ± {_figure(entry.spread, percent)}"
    interval = "" if entry.low is None else f"{_figure(entry.low, percent)} to {_figure(entry.high, percent)}"
    return escape(entry.name), valid, _figure(entry.test, percent), interval, f"{entry.seconds:.1f}"


def _figure(value: float | None, percent: bool) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if percent else f"{value:.4g}"


def comparison(found: "Comparison") -> None:
    """Every recipe's figure, the paired differences, and who wins."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("recipe", f"{found.metric} (mean of {found.seeds} seeds)"):
        table.add_column(column, overflow="fold")
    for arm in found.arms:
        table.add_row(escape(arm.recipe), _figure(arm.mean, found.percent) + f" ± {_figure(arm.spread, found.percent)}")
    out.print(table)
    out.print()
    for sentence in found.sentences:
        out.print(Text(sentence, style="bold"))


def catalogue(rows: "Sequence[Row]", words: str) -> None:
    """One line a row: number, slug, status, what it does."""
    if not rows:
        out.print(Text(f"nothing in the catalogue for {words!r}"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for column in ("number", "slug", "status", "room"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it does", overflow="ellipsis", no_wrap=True, ratio=1)
    style = {"works": "green", "partial": "yellow", "planned": "dim"}
    for r in rows:
        table.add_row(str(r.number), r.slug, Text(r.status, style=style.get(r.status, "")), r.room, escape(r.what))
    out.print(table)
    out.print(Text(f"{len(rows)} rows; wellposed show SLUG tells all of one", style="dim"))


def row(r: "Row") -> None:
    """Everything the catalogue knows of one paper."""
    facts: list[tuple[str, Any]] = [
        ("number", r.number),
        ("status", r.status + (f": {r.missing}" if r.missing else "")),
        ("import", ", ".join(r.provides)),
        ("helps with", ", ".join(r.remedies)),
        ("arXiv", r.arxiv),
        ("code", r.code),
        ("we follow", r.follows),
        ("paper's figure", r.headline),
        ("claim", r.claim),
        ("what came out", r.verdict),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value not in (None, "", ()):
            grid.add_row(name, Text(str(value)))
    head = Text(f"{r.title}{f' ({r.year})' if r.year else ''}", style="bold")
    out.print(Group(head, Text(""), Text(r.what), Text(""), Panel(Text(r.math.strip()), title="mathematics"), grid))


def outcome(found: "Outcome") -> None:
    """A claim's arms, the paired difference, the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm")
    table.add_column(found.metric, justify="right")
    for arm, figures in found.arms.items():
        mean = sum(figures) / len(figures)
        table.add_row(escape(arm), f"{mean:.4g}  ({min(figures):.4g} to {max(figures):.4g})")
    out.print(Text(found.says, style="bold"))
    out.print(table)
    interval = f"95 % interval {found.low:.3g} to {found.high:.3g}, {len(found.seeds)} seeds"
    out.print(Text(f"{found.method} against {found.baseline}: {found.difference:+.3g} ({interval})"))
    if found.paper:
        out.print(Text(f"the paper: {found.paper}"))
    out.print(Text(f"verdict: {found.verdict}", style="bold"))


def write_csv(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as CSV.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
