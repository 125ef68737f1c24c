"""Run claims' experiments, keep what came out, and write the page of evidence: ``python -m wellposed.claims``."""

import argparse
import sys
from pathlib import Path

from wellposed import catalog
from wellposed.claims import evidence
from wellposed.claims.experiment import claim_of, reproduce, store
from wellposed.errors import UserError

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; a user's error is one line and code 2."""
    options = _parser().parse_args(arguments)
    try:
        _run(options.slugs, options.evidence_only, options.results, options.evidence)
    except UserError as error:
        print(f"wellposed.claims: {error}", file=sys.stderr)
        return 2
    return 0


def _run(slugs: list[str], evidence_only: bool, results: Path, target: Path) -> None:
    if not target.parent.is_dir():
        raise UserError(f"no folder {target.parent} to write the evidence into: name a file with --evidence")
    if evidence_only and slugs:
        raise UserError("--evidence-only runs nothing: leave the methods out")
    if not evidence_only:
        chosen = [claim_of(slug)[0] for slug in slugs] or [row for row in catalog.rows() if row.experiment]
        results.mkdir(parents=True, exist_ok=True)
        for row in sorted(chosen, key=lambda row: row.number):
            found = reproduce(row.slug)
            store(found, results)
            interval = f"{found.low:+.4g} to {found.high:+.4g}"
            print(f"{row.slug}: {found.difference:+.4g} ({interval}), {found.verdict}, {found.seconds} s", flush=True)
    target.write_text(evidence.page(results), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wellposed.claims", description=__doc__.split(":")[0] + ".")
    parser.add_argument("slugs", nargs="*", metavar="SLUG", help="methods to run; all that have an experiment")
    parser.add_argument("--evidence-only", action="store_true", help="run nothing; write the page from what is stored")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the outcomes")
    parser.add_argument("--evidence", type=Path, default=CHECKOUT / "docs" / "evidence.md", help="file of the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
