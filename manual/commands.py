"""Owns the two command lines as one kind of facts: read from their argparse parsers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import converter.cli.options
import daemon.cli


@dataclass(frozen=True)
class Option:
    """An option, or an argument (then without names)."""

    names: tuple[str, ...]
    metavar: str
    """Empty for a flag."""
    help: str
    choices: tuple[str, ...] = ()
    default: str = ""
    is_required: bool = True
    is_repeatable: bool = False

    @property
    def is_folder(self) -> bool:
        return self.metavar in ("DIR", "ROOT")

    @property
    def is_path(self) -> bool:
        return self.metavar in ("DIR", "ROOT", "FILE", "PATH")


@dataclass(frozen=True)
class Command:
    """One command of a program."""

    name: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Option, ...]


@dataclass(frozen=True)
class Program:
    """A program and its commands."""

    name: str
    help: str
    commands: tuple[Command, ...]


HELP = Option(("-h", "--help"), "", "Show this help message and exit.")


def dcp2hf() -> Program:
    """As `converter.cli.options` has it."""
    return _of(converter.cli.options.parser(*[lambda given: 0] * 3))


def dcp2hfd() -> Program:
    """As `daemon.cli` has it."""
    return _of(daemon.cli.parser())


def _of(parser: argparse.ArgumentParser) -> Program:
    """argparse has no public way to ask a parser what it takes."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    commands = []
    for name, command in subparsers.choices.items():
        found = [_of_argparse(action) for action in command._actions if action.dest != "help"]
        options = (*(option for option in found if option.names), HELP)
        arguments = tuple(option for option in found if not option.names)
        commands.append(Command(name, command.description or "", options, arguments))
    return Program(parser.prog, parser.description or "", tuple(commands))


def _of_argparse(action: argparse.Action) -> Option:
    choices = tuple(map(str, action.choices or ()))
    metavar = "" if action.nargs == 0 else str(action.metavar or "|".join(choices) or action.dest.upper())
    is_repeatable = action.nargs == "*" or isinstance(action, argparse._AppendAction)
    is_needed = action.required and action.nargs not in ("*", "?")
    default = "" if action.nargs == 0 or not isinstance(action.default, str | int | float) else str(action.default)
    return Option(tuple(action.option_strings), metavar, action.help or "", choices, default, is_needed, is_repeatable)


PROGRAMS = (dcp2hf, dcp2hfd)
