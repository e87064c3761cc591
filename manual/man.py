"""Owns the man pages: synopsis and options from the parsers, the daemon's keys from its settings, the rest from `prose`."""

import re
import textwrap
from collections.abc import Iterator

from daemon.config import schema
from manual import prose
from manual.commands import Command, Option, Program


def page(program: Program) -> str:
    """The page as man(7) macros."""
    about = prose.PAGES[program.name]
    lines = [
        f'.\\" Made by `make manual`.\n.TH {program.name.upper()} {about.section} {prose.DATE} dcp2hf "dcp2hf"',
        ".SH NAME",
        f"{program.name} \\- {_text(about.name)}",
        ".SH SYNOPSIS",
    ]
    for i, command in enumerate(program.commands):
        lines += [*([".br"] if i else []), f".B {program.name} {command.name}", *_synopsis(command)]
    lines += [".SH DESCRIPTION", _text(program.help)]
    for text in about.description:
        lines += [".PP", _text(text)]
    for command in program.commands:
        lines += [f'.SH "{program.name} {command.name}"', _text(command.help)]
        for option in (*command.arguments, *command.options):
            lines += [".TP", _heading(option), _text(_help(option))]
    if about.has_keys:
        lines += [".SH CONFIGURATION", _text(prose.KEYS), *_keys()]
    lines += ['.SH "HOOKS"', "\n.PP\n".join(map(_text, about.hooks))]
    for title, rows in (("EXIT STATUS", about.exits), ("ENVIRONMENT", about.environment), ("FILES", about.files)):
        lines += [f'.SH "{title}"']
        for term, meaning in rows.items():
            lines += [".TP", f".B {_text(term)}", _text(meaning)]
    lines += [".SH EXAMPLES"]
    for example, meaning in about.examples.items():
        lines += [".TP", f".B {_text(example)}", _text(meaning)]
    lines += ['.SH "SEE ALSO"', f".BR {about.see} ({prose.PAGES[about.see].section})"]
    return "\n".join(lines) + "\n"


def _synopsis(command: Command) -> Iterator[str]:
    for option in command.options:
        name = next((name for name in option.names if name.startswith("--")), "")
        if name == "--help":
            continue
        said = f"\\fB{_text(name)}\\fR" + (f" \\fI{_text(option.metavar)}\\fR" if option.metavar else "")
        yield said if option.metavar and option.is_required and name == "--dcp-path" else f"[{said}]"
    for argument in command.arguments:
        said = f"\\fI{argument.metavar}\\fR"
        yield said if argument.is_required else f"[{said} ...]"


def _heading(option: Option) -> str:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
    return " ".join(filter(None, (names, f"\\fI{_text(option.metavar)}\\fR" if option.metavar else "")))


def _help(option: Option) -> str:
    is_value = option.help.partition(":")[0] in option.choices
    text = option.help if is_value else option.help[:1].upper() + option.help[1:]
    text = text if text.endswith((".", ".)")) else f"{text}."
    return f"{text} Default: {option.default}." if option.default else text


def _keys() -> Iterator[str]:
    """The rows of the table of keys."""
    for row in schema.table().splitlines()[2:]:
        key, default, per_root, meaning = (cell.strip() for cell in row.strip("|").split(" | "))
        yield ".TP"
        yield f"\\fB{key.strip('` ')}\\fR = {_text(default.strip('`'))}{' (per root)' if per_root else ''}"
        yield _text(meaning.replace("`", "").rstrip(" |"))


def _text(text: str) -> str:
    """Words as roff takes them: nothing in them is a request, and a hyphen can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "").replace("…", "...")
    lines = textwrap.wrap(text, 78, break_on_hyphens=False, break_long_words=False)
    return "\n".join(re.sub(r"^([.'])", r"\\&\1", line) for line in lines)
