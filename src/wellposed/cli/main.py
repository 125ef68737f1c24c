"""``wellposed``: fit a table, predict, compare recipes, read the catalogue, reproduce a claim."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from wellposed.cli import show as screen
from wellposed.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Find the regularisation methods that generalise best on your data, and know by how much.",
)

_UsageError: Any = typer.BadParameter.__base__
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]


def seconds_of(text: str) -> float:
    """A span of time such as 90s, 5m, 1h or a number of seconds.

    >>> seconds_of("5m"), seconds_of("1.5h"), seconds_of("90")
    (300.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--budget {text}: not a span of time; write 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[match[2]]


@app.command(epilog="Example: wellposed fit data.csv --target price --budget 5m")
def fit(
    data: Annotated[
        str | None, typer.Argument(help="CSV, TSV, Parquet or Arrow file, or sample:NAME (sample:digits).")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    budget: Annotated[str | None, typer.Option(help="Wall-clock time for the whole run; 5m unless --trials.")] = None,
    trials: Annotated[int | None, typer.Option(help="Number of cocktails to try.", min=1)] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, auc, log_loss, ...; rmse, mae, r2.")] = None,
    task: Annotated[str | None, typer.Option(help="binary, multiclass or regression, if it is inferred wrong.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Rows with the same value here stay on one side of a split.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Split in the order of this column: the latest rows test.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Learn from this column though it looks like an id.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Keep this recipe and search only the network.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; wellposed-runs/NAME-N by default.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Decides splits, proposals and trainings.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes that share the search.", min=1)] = 1,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find the cocktail of regularisers that generalises best on a table.

    Leaves a folder with the report, the model, the recipe and every figure.
    """
    from wellposed.study.fit import fit_table, resume_fit
    from wellposed.study.options import FitOptions

    with screen.progress(quiet=as_json) as told:
        if resume is not None:
            folder, result = resume_fit(resume, told)
        else:
            if data is None:
                raise UserError("fit: which table? wellposed fit data.csv --target COLUMN")
            if target is None:
                raise UserError(f"fit {data}: which column is to be predicted? Add --target COLUMN")
            options = FitOptions(
                source=data if data.startswith("sample:") else str(Path(data)),
                target=target,
                budget=seconds_of(budget) if budget is not None else (None if trials is not None else 300.0),
                trials=trials,
                metric=metric,
                task=task,
                group=group,
                time=time,
                keep=tuple(keep or ()),
                recipe=recipe,
                seed=seed,
                workers=workers,
                device=device,
            )
            folder, result = fit_table(options, out, told)
    if as_json:
        _print_json(json.loads(result.to_json()) | {"folder": str(folder.path), "report": str(folder.report)})
    else:
        screen.result(folder, result)


@app.command(epilog="Example: wellposed predict wellposed-runs/data-1 new.csv -o predictions.csv")
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[
        str, typer.Argument(help="Table with the columns the run was fitted on; the target may be missing.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV file to write; the screen by default.")] = None,
    as_json: Json = False,
) -> None:
    """Predict for new rows: class probabilities or values, in the order of the rows."""
    from wellposed.study.predict import predict_table

    table, notes = predict_table(run, data)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if out is not None:
        screen.write_csv(table, out)
    if as_json:
        _print_json({"rows": len(table), "columns": list(table.columns), "out": None if out is None else str(out)})
    elif out is None:
        typer.echo(table.to_csv(index=False), nl=False)
    else:
        typer.echo(f"{len(table)} rows to {out}")


@app.command(epilog="Example: wellposed compare data.csv --target y --with 'MaxSup()' --with 'CrossEntropy()'")
def compare(
    data: Annotated[str, typer.Argument(help="The table.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    recipes: Annotated[list[str], typer.Option("--with", help="A recipe; give two or more.")],
    seeds: Annotated[int, typer.Option(help="Splits and seeds to compare on.", min=2)] = 10,
    metric: Annotated[str | None, typer.Option(help="As for fit.")] = None,
    seed: Annotated[int, typer.Option(help="First seed.", min=0)] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compare recipes on the same splits and seeds: paired differences, intervals, who wins."""
    from wellposed.study.compare import compare_recipes

    with screen.progress(quiet=as_json) as told:
        found = compare_recipes(
            data, target, recipes, seeds=seeds, metric=metric, first_seed=seed, device=device, told=told
        )
    if as_json:
        _print_json(found.to_json())
    else:
        screen.comparison(found)


@app.command("catalog", epilog="Example: wellposed catalog noisy labels")
def catalog_(
    words: Annotated[list[str] | None, typer.Argument(help="What to look for; everything by default.")] = None,
    room: Annotated[str | None, typer.Option(help="Only this room: losses, optim, ...")] = None,
    status: Annotated[str | None, typer.Option(help="Only works, partial or planned.")] = None,
    as_json: Json = False,
) -> None:
    """Find methods by what they do, the trouble they help with, or their paper."""
    from wellposed import catalog

    rows = catalog.search(" ".join(words or []), room=room, status=status)
    if as_json:
        _print_json([row.as_dict() for row in rows])
    else:
        screen.catalogue(rows, " ".join(words or []))


@app.command(epilog="Example: wellposed show maxsup")
def show(
    slug: Annotated[str, typer.Argument(help="Slug, number or class name.")],
    as_json: Json = False,
) -> None:
    """One row of the catalogue: the method, its formula, its paper, its proof and what came out."""
    from wellposed import catalog

    row = catalog.row(slug)
    if as_json:
        _print_json(row.as_dict())
    else:
        screen.row(row)


@app.command(epilog="Example: wellposed reproduce maxsup --seeds 5")
def reproduce(
    slug: Annotated[str, typer.Argument(help="Slug, number or class name.")],
    seeds: Annotated[int | None, typer.Option(help="How many; the experiment's own number by default.", min=1)] = None,
    full: Annotated[bool, typer.Option("--full", help="The larger form.")] = False,
    as_json: Json = False,
) -> None:
    """Run a paper's claim as a small experiment, with its interval, next to the paper's own figure."""
    from wellposed.claims.experiment import claim_of
    from wellposed.claims.experiment import reproduce as run

    _, claim = claim_of(slug)
    with screen.progress(quiet=as_json) as told:
        told.stage(claim.says)
        outcome = run(slug, seeds=seeds, full=full, progress=told.seed)
    if as_json:
        _print_json(json.loads(outcome.to_json()))
    else:
        screen.outcome(outcome)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from wellposed import __version__

        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command; a user's error is one line and exit code 2."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code: Any = app(given or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _fail(" ".join(str(error).split()))
    except _UsageError as error:
        name = "" if error.ctx is None else " ".join(error.ctx.command_path.split()[1:])
        where = f"{name}: " if name else ""
        _fail(f"{where}{error.format_message()} (--help shows the options)")
    except typer.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes at the end
        sys.exit(0)


def _fail(line: str, code: Literal[2, 130] = 2) -> NoReturn:
    typer.echo(f"wellposed: {line}", err=True)
    sys.exit(code)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
