"""
Run the benchmarks: `python -m benchmarks [--check] [NAME …]`.

Prints a table for each and a summary of the budgets. With `--check` the exit status is 1 if a
budget was clearly missed.
"""

import argparse
import sys
from collections.abc import Iterable
from importlib import import_module
from time import monotonic

from .measure import Row, Table

BENCHES = ("publish", "subscribe", "start_stop", "import", "request", "exit", "reload", "idle")
HEADINGS = Row("what", "ours", "floor", "peers", "ratio", "budget", "verdict")


def main() -> int:
    arguments = _arguments()
    since = monotonic()
    tables = [table for name in arguments.names or BENCHES for table in _run(name)]
    budgeted = [(table, row) for table in tables for row in table.rows if row.verdict]
    _print_summary(budgeted, monotonic() - since)
    return int(arguments.check and any(row.verdict == "missed" for _, row in budgeted))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--check", action="store_true", help="exit 1 if a budget is missed")
    arguments = parser.parse_args()
    unknown = set(arguments.names).difference(BENCHES)
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}; known: {', '.join(BENCHES)}")
    return arguments


def _run(name: str) -> list[Table]:
    tables: list[Table] = import_module(f"benchmarks.bench_{name}").run()
    for table in tables:
        _print_table(table)
    return tables


def _print_table(table: Table) -> None:
    """Print *table* as Markdown, so that a README can have it as it is."""
    lines = [_cells(row) for row in (HEADINGS, *table.rows)]
    used = [index for index, column in enumerate(zip(*lines[1:], strict=True)) if any(column)]
    widths = [max(len(line[index]) for line in lines) for index in used]
    print(f"\n{table.title}, in {table.unit}; cells are median (min-max)\n")
    for number, line in enumerate(lines):
        _print_line(line[index].ljust(width) for index, width in zip(used, widths, strict=True))
        if number == 0:
            _print_line("-" * width for width in widths)
    sys.stdout.flush()


def _print_line(cells: Iterable[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def _cells(row: Row) -> list[str]:
    return [row.what, row.ours, row.floor, row.peers, row.ratio, row.budget, row.verdict]


def _print_summary(budgeted: list[tuple[Table, Row]], seconds: float) -> None:
    met = sum(row.verdict == "met" for _, row in budgeted)
    print(f"\n{met} of {len(budgeted)} budgets met, in {seconds:.0f} s")
    for table, row in budgeted:
        if row.verdict != "met":
            print(f"  {row.verdict}: {table.title}: {row.what}: {row.ratio or row.ours}")


if __name__ == "__main__":
    sys.exit(main())
