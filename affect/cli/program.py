"""The `affect` command: each subcommand imports only what it runs.

Progress and logs go to standard error, the result to standard output: text for people, or with
`--json` exactly one JSON object. Exit status: 0 done, 2 for what the user can mend, 1 for a defect
of the program, 75 when it gave way after saving its state, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from affect import __version__
from affect.cli import clusters, corpora, deployment, prediction, reports, training
from affect.cli.command import Command, Parser
from affect.cli.output import complain, let_go_of_output, show, write
from affect.errors import Preempted, UserError, suggestion

COMMANDS: dict[str, Command] = {
    **corpora.COMMANDS,
    **training.COMMANDS,
    **deployment.COMMANDS,
    **prediction.COMMANDS,
    **reports.COMMANDS,
    **clusters.COMMANDS,
}
_OK, _DEFECT, _USER_ERROR, _PREEMPTED, _INTERRUPTED = 0, 1, 2, 75, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        _run([argument for argument in arguments if argument != "--debug"])
    except UserError as error:
        if debug:
            raise
        complain(f"error: {error}")
        return _USER_ERROR
    except KeyboardInterrupt as stop:
        gave_way = isinstance(stop, Preempted)
        complain(str(stop) or ("preempted: nothing had begun" if gave_way else "interrupted"))
        return _PREEMPTED if gave_way else _INTERRUPTED
    except BrokenPipeError:
        let_go_of_output()
        return _OK
    except OSError as error:
        if debug:
            raise
        complain(f"error: {error.filename or 'cannot write'}: {error.strerror or error}")
        let_go_of_output()
        return _USER_ERROR
    except Exception as error:
        if debug:
            raise
        complain(f"defect: {type(error).__name__}: {error} (run again with --debug and report it)")
        return _DEFECT
    return _OK


def _run(arguments: Sequence[str]) -> None:
    name, rest = _subcommand(arguments)
    if name is None:
        return
    command = COMMANDS[name]
    parser = Parser(prog=f"affect {name}", description=command.summary, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.configure(parser)
    if command.takes_experiment:
        options, options.experiment_arguments = parser.parse_known_args(rest)
    else:
        options = parser.parse_args(rest)
    result = command.run(options)
    if result.text is None:
        return
    if options.json:
        from affect.files import finite

        write(json.dumps(finite(result.data), allow_nan=False))
    else:
        show(result.text)
    if result.failed:
        raise UserError(result.failed)


def _subcommand(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The subcommand and its arguments; none where help or the version was asked for."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        write(_overview())
        return None, []
    if arguments[0] == "--version":
        write(f"affect {__version__}")
        return None, []
    if arguments[0] not in COMMANDS:
        raise UserError(f"unknown command {arguments[0]!r}: {suggestion(arguments[0], COMMANDS)}")
    return arguments[0], arguments[1:]


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: affect COMMAND ...",
            "",
            "Affect recognition from facial action units, without keeping or moving faces.",
            "",
            "commands:",
            *lines,
            "",
            "`affect COMMAND --help` explains each; --json prints one JSON object.",
        ]
    )
