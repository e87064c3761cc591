"""Owns the two command lines as one kind of facts: read from typer's commands and from argparse's, said nowhere else."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, get_args

import typer

import converter.cli.main
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


HELP = Option(("-h", "--help"), "", "show what there is, and exit")


def dcp2hf() -> Program:
    """As `converter.cli.main` has it."""
    group: Any = typer.main.get_command(converter.cli.main.app)
    commands = []
    for name, command in group.commands.items():
        found = [(param, _of_typer(param)) for param in command.params]
        options = tuple(option for param, option in found if param.param_type_name == "option")
        arguments = tuple(option for param, option in found if param.param_type_name == "argument")
        asks = Option(("--help",), "", HELP.help)
        commands.append(Command(name, command.help or "", (*options, asks), arguments))
    return Program("dcp2hf", group.help or "", tuple(commands))


def _of_typer(param: Any) -> Option:
    names = () if param.param_type_name == "argument" else tuple(param.opts)
    is_flag = bool(getattr(param, "is_flag", False))
    choices = tuple(str(choice) for choice in get_args(param.type_descriptor.annotation) if isinstance(choice, str))
    metavar = "" if is_flag else param.metavar or "|".join(choices) or "N"
    shown = "" if is_flag or param.default is None or param.multiple else f"{param.default}"
    return Option(names, metavar, param.help or "", choices, shown, param.required, param.multiple)


def dcp2hfd() -> Program:
    """As `daemon.cli` has it. argparse has no public way to ask a parser what it takes."""
    parser = daemon.cli.parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    commands = []
    for name, command in subparsers.choices.items():
        found = [_of_argparse(action) for action in command._actions if action.dest != "help"]
        options = (*(option for option in found if option.names), HELP)
        arguments = tuple(option for option in found if not option.names)
        commands.append(Command(name, command.description or "", options, arguments))
    return Program("dcp2hfd", parser.description or "", tuple(commands))


def _of_argparse(action: argparse.Action) -> Option:
    metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    choices = tuple(map(str, action.choices or ()))
    is_needed = action.required and action.nargs != "*"
    return Option(tuple(action.option_strings), metavar, action.help or "", choices, "", is_needed, action.nargs == "*")


PROGRAMS = (dcp2hf, dcp2hfd)
