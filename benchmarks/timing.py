"""Compare how long several callables take, fairly: one process, interleaved rounds, processor time, one thread."""

import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

Rows: TypeAlias = dict[str, dict[str, float]]


def compare(cases: Mapping[str, Callable[[], object]], *, rounds: int = 30, sample: float = 0.02) -> Rows:
    """Time each case; the first is what the others are measured by.

    Every round runs all cases once, in a shuffled order, each repeated until a sample lasts long enough for the clock.
    Processor time is counted, so that a neighbour on the machine costs nothing.

    Args:
        cases: name to a callable without arguments.
        rounds: samples of each case.
        sample: seconds that a sample lasts at least.

    Returns:
        For each case ``seconds``, the median of one call, and ``ratio``, the median of its ratio to the first case's
        sample of the same round.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    repeats = {name: max(1, round(sample / min(_seconds(case, 1) for _ in range(3)))) for name, case in cases.items()}
    samples: dict[str, list[float]] = {name: [] for name in cases}
    shuffler = random.Random(0)
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        for name in shuffler.sample(list(cases), len(cases)):
            samples[name].append(_seconds(cases[name], repeats[name]))
        gc.enable()
    torch.set_num_threads(threads)
    first = samples[next(iter(cases))]
    return {
        name: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(t / f for t, f in zip(times, first, strict=True)),
        }
        for name, times in samples.items()
    }


def table(title: str, rows: Rows) -> str:
    """The rows as text, a line a case."""
    lines = [f"  {name:44s} {row['seconds'] * 1e3:9.3f} ms   x {row['ratio']:6.2f}" for name, row in rows.items()]
    return "\n".join([title, *lines])


def save(path: Path, results: Mapping[str, Rows]) -> None:
    """Write the results as JSON, with what they were measured on."""
    about = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "results": dict(results)}, indent=1) + "\n")


def _seconds(case: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        case()
    return max((time.process_time() - start) / repeats, 1e-9)
