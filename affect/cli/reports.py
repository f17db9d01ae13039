"""`compare` and `errors`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from affect.cli.command import Command, Result, path_of


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path_of, nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument(
        "--out",
        type=path_of,
        metavar="FILE.html",
        help="write all of it with figures as one page that opens without a network",
    )
    parser.add_argument("--figure", type=path_of, help="draw the intervals as a PNG")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap over subjects"
    )


def _compare(options: argparse.Namespace) -> Result:
    from affect.report import page, table
    from affect.report.compare import compare
    from affect.report.comparison_figures import draw_comparison
    from affect.training import run as runs

    opened = [runs.open_run(folder) for folder in options.runs]
    comparison = compare(opened, resamples=options.resamples)
    if options.figure is not None:
        draw_comparison(comparison, options.figure)
    if options.out is not None:
        page.write(comparison, opened, options.out)
    return Result(table.to_tables(comparison), comparison.to_json())


def _configure_errors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_of, help="a run's folder")
    parser.add_argument("--split", choices=("val", "test"), default="test")


def _errors(options: argparse.Namespace) -> Result:
    from affect import store
    from affect.report import errors

    predictions = store.read_predictions(options.run / "predictions.h5")
    parts = errors.error_parts(predictions, options.split)
    return Result(errors.to_table(parts), {"run": str(options.run), **parts})


COMMANDS: Mapping[str, Command] = {
    "compare": Command("runs side by side, with uncertainty", _configure_compare, _compare),
    "errors": Command("what a run's error is made of", _configure_errors, _errors),
}
