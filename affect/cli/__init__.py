"""The `affect` command."""

from affect.cli.command import Command
from affect.cli.program import COMMANDS, main

__all__ = ["COMMANDS", "Command", "main"]
