"""Owns completion in fish: one `complete` line an option."""

from manual.commands import Command, Option, Program


def script(program: Program) -> str:
    """What fish reads."""
    name = program.name
    lines = [f"# fish completion of {name}, made by `make manual`", f"complete -c {name} -f"]
    for command in program.commands:
        lines.append(f"complete -c {name} -n __fish_use_subcommand -a {command.name} -d {_quoted(command.help)}")
    for command in program.commands:
        lines += [_line(name, command, option) for option in command.options]
        lines += [f"{_seen(name, command)} {_values(argument)}" for argument in command.arguments]
    return "\n".join(lines) + "\n"


def _seen(program: str, command: Command) -> str:
    return f"complete -c {program} -n '__fish_seen_subcommand_from {command.name}'"


def _line(program: str, command: Command, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    needs = (" -r " if _is_file(option) else " -x ") + _values(option) if option.metavar else ""
    return f"{_seen(program, command)} {names}{needs} -d {_quoted(option.help)}"


def _values(option: Option) -> str:
    if option.choices:
        return f"-a {_quoted(' '.join(option.choices))}"
    return "-a '(__fish_complete_directories)'" if option.is_folder else "-F" if option.is_path else ""


def _is_file(option: Option) -> bool:
    return option.is_path and not option.is_folder


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
