"""Owns completion in bash: a function that needs nothing but bash itself, and starts no Python at each TAB."""

from manual.commands import Command, Option, Program


def script(program: Program) -> str:
    """What bash reads."""
    name = program.name
    cases = "\n".join(_case(command) for command in program.commands)
    return f"""\
# bash completion of {name}, made by `make manual`
_{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}}
    if [[ $current == "=" ]]; then # bash takes --option=value for three words
        current=""
    elif [[ $before == "=" ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    local options="" words="" paths=""
    if ((COMP_CWORD == 1)); then
        words="{" ".join(command.name for command in program.commands)}" command=""
        options="--help"
    fi
    case $command in
{cases}
    esac
    COMPREPLY=()
    case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current") ;;
        *)
            [[ $words ]] && mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
            if [[ $paths ]]; then
                compopt -o filenames
                mapfile -t COMPREPLY < <(compgen "$paths" -- "$current")
            fi
            ;;
    esac
}}
complete -F _{name} {name}
"""


def _case(command: Command) -> str:
    names = " ".join(name for option in command.options for name in option.names)
    lines = [f"        {command.name})", f'            options="{names}"']
    if argument := next(iter(command.arguments), None):
        lines.append(f"            {_values(argument)}")
    lines.append("            case $before in")
    for option in command.options:
        if option.metavar:
            lines.append(
                f"                {'|'.join(option.names)}) words='' paths='' options=''; {_values(option)} ;;"
            )
    return "\n".join([*lines, "            esac", "            ;;"])


def _values(option: Option) -> str:
    if option.choices:
        return f'words="{" ".join(option.choices)}"'
    return "paths=-d" if option.is_folder else "paths=-f" if option.is_path else ":"
