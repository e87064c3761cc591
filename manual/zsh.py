"""Owns completion in zsh: `_arguments` specifications, with the help of each option."""

from manual.commands import Command, Option, Program


def script(program: Program) -> str:
    """What zsh reads, from a file named `_PROGRAM` in its fpath."""
    name = program.name
    commands = "\n".join(
        f"        {_quoted(f'{command.name}:{_escaped(command.help)}')}" for command in program.commands
    )
    cases = "\n".join(_case(command) for command in program.commands)
    return f"""\
#compdef {name}
# zsh completion of {name}, made by `make manual`
_{name}() {{
    local -a commands=(
{commands}
    )
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    ((CURRENT--))
    case $command in
{cases}
    esac
}}
_{name} "$@"
"""


def _case(command: Command) -> str:
    specs = [_option(option, name) for option in command.options for name in option.names]
    specs += [
        f"'{'*' if argument.is_repeatable else '1'}:{argument.metavar}:{_action(argument)}'"
        for argument in command.arguments
    ]
    lines = " \\\n".join(f"                {spec}" for spec in specs)
    return f"        {command.name})\n            _arguments \\\n{lines}\n            ;;"


def _option(option: Option, name: str) -> str:
    value = f":{_escaped(option.metavar)}:{_action(option)}" if option.metavar else ""
    return _quoted(f"{'*' if option.is_repeatable else ''}{name}[{_escaped(option.help)}]{value}")


def _action(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    return "_files -/" if option.is_folder else "_files" if option.is_path else " "


def _escaped(text: str) -> str:
    for character in "\\[]:":
        text = text.replace(character, f"\\{character}")
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
