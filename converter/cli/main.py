"""Owns the `dcp2hf` command: its output and exit codes. `convert`, `verify` and `inspect` do the work.

Each command imports its modules when it runs, so that `--help` and a wrong option are answered at once.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from converter.checkpoint import step_selection
from converter.cli.options import options_of, parser
from converter.common import errors, interrupts, names_on_disk
from converter.common.files import exists, is_folder

if TYPE_CHECKING:
    from converter.cli.progress import Report
    from converter.run.options import Options

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NOTHING, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def _convert(given: argparse.Namespace) -> int:
    from converter.cli.progress import reporter

    argument, dcp_path, output, events = given.path, given.dcp_path, given.output, given.events
    if argument is not None and dcp_path is not None and argument.absolute() != dcp_path.absolute():
        _usage(f"two paths are given, {argument} and --dcp-path {dcp_path}: name one")
    path = argument or dcp_path
    if path is None:
        _usage("no PATH is given: dcp2hf convert PATH, a step directory or a folder that holds step-*")
    options = options_of(given)
    if events and (number := names_on_disk.step_number(path.name)) is not None and not exists(path):
        gone = errors.StepVanished("the step is gone", path=path, hint="the trainer purged it")
        with reporter(events=True) as report:
            report("conversion_failed", gone.as_event() | {"step": number})
    steps, named = _steps(path)
    if output is not None and not is_folder(output.absolute().parent):
        _usage(f"--output {output}: its parent folder does not exist")
    run = None if named else steps[0].parent
    if given.dry_run and not events:
        for line in _passed_over(run) if run else ():
            print(line)
        return _dry_run(steps, named, options)
    with reporter(events=events) as report:
        for entry, why in step_selection.passed_over(run) if run else ():
            report("conversion_skipped", {"path": str(entry), "reason": why})
        return (_dry_run if given.dry_run else _convert_all)(steps, named, options, report)


def _verify(given: argparse.Namespace) -> int:
    from converter.cli.verify_report import show_verify_result
    from converter.verify import locate, verify

    path = given.path
    if (
        not exists(path)
        and names_on_disk.published_step(path.name) is None
        and names_on_disk.step_number(path.name) is None
    ):
        _usage(f"{path} does not exist")
    try:
        step, published, number = locate(path)
    except ValueError as error:
        _usage(str(error))
    if not is_folder(published):
        if not exists(path):
            _usage(f"{path} does not exist")
        print(f"nothing is published for this step: {published} does not exist", file=sys.stderr)
        return EXIT_FAILED
    try:
        verdict = verify(step, published, number, options_of(given), given.sample)
    except (errors.ConversionError, OSError) as failed:
        why = errors.from_oserror(failed, published) if isinstance(failed, OSError) else failed
        print(f"not verified: {why} ({why.hint})")
        return EXIT_FAILED
    show_verify_result(verdict, published, given.sample)
    return EXIT_OK if verdict.equal else EXIT_FAILED


def _inspect(given: argparse.Namespace) -> int:
    from converter.cli.tables import show
    from converter.inspect import describe

    steps, named = _steps(given.path)
    for line in () if named else _passed_over(steps[0].parent):
        print(line, file=sys.stderr)
    described = [describe(step) for step in steps]
    if given.json:
        print(json.dumps(described if len(described) > 1 else described[0], indent=2))
    else:
        show(described)
    return EXIT_OK if all(said["state"] == "complete" for said in described) else EXIT_FAILED


def _steps(path: Path) -> tuple[list[Path], bool]:
    """The steps meant by PATH in step order, and whether one was named. Leaves with 2 or 3 where there are none."""
    try:
        return step_selection.steps_of(path)
    except step_selection.NoSuchPath as error:
        _usage(str(error))
    except step_selection.NoSteps as error:
        print(errors.printable(f"nothing to convert: {error}"), file=sys.stderr)
        for line in _passed_over(path.absolute()):
            print(line, file=sys.stderr)
        _exit(EXIT_NOTHING)


def _passed_over(folder: Path) -> list[str]:
    return [errors.printable(f"{entry.name}: {why}") for entry, why in step_selection.passed_over(folder)]


def _convert_all(steps: list[Path], named: bool, options: "Options", report: "Report") -> int:
    """Exit code of converting these steps."""
    from converter.convert import convert_step

    return _each(steps, named, lambda step: convert_step(step, options, report), partial(_refused, report))


def _refused(report: "Report", step: Path, error: errors.ConversionError, is_failure: bool) -> None:
    said = error.as_event() | {"step": names_on_disk.step_number(step.name)}
    if is_failure:
        report("conversion_failed", said)
    else:
        report("conversion_skipped", said | {"reason": error.what})


def _each(
    steps: list[Path],
    named: bool,
    do: Callable[[Path], None],
    refused: Callable[[Path, errors.ConversionError, bool], None],
) -> int:
    """Exit code of doing something with each of these steps; one step's failure does not stop the others.

    `refused` is told the error, and whether it is a failure: an incomplete step that nobody named is none.
    """
    failed = done = 0
    for step in steps:
        try:
            do(step)
            done += 1
        except errors.ConversionError as error:
            is_failure = named or not isinstance(error, errors.StepIncomplete | errors.NoModelInStep)
            refused(step, error, is_failure)
            failed += is_failure
    return EXIT_FAILED if failed else EXIT_OK if done else EXIT_NOTHING


def _dry_run(steps: list[Path], named: bool, options: "Options", report: "Report | None" = None) -> int:
    """The exit code that converting these steps has, as far as a look tells. Said as events to `report`, or as text."""
    from converter.inspect import preview

    def say(step: Path, would: bool, text: str) -> None:
        if report is not None:
            about = {"step": names_on_disk.step_number(step.name), "path": str(step)}
            report("would_convert" if would else "conversion_skipped", about | {"message" if would else "reason": text})
            return
        print(errors.printable(f"{step.name}: {'would convert to' if would else 'would not convert:'} {text}"))

    def refused(step: Path, error: errors.ConversionError, is_failure: bool) -> None:
        if report is not None:
            _refused(report, step, error, is_failure)
            return
        say(step, False, f"{error} ({error.hint})")

    return _each(steps, named, lambda step: say(step, *preview(step, options)), refused)


def _usage(text: str) -> NoReturn:
    print(errors.printable(f"dcp2hf: {text}"), file=sys.stderr)
    _exit(EXIT_USAGE)


def _exit(code: int) -> NoReturn:
    raise SystemExit(code)


def main(argv: list[str] | None = None) -> NoReturn:
    """The command line. `--dcp-path …` alone means `convert` (users have scripts with that form)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0].startswith("-") and any(a.partition("=")[0] == "--dcp-path" for a in arguments):
        arguments = ["convert", *arguments]
    interrupts.install()
    try:
        code = _run(arguments)
        interrupts.ignore()  # nothing is left to interrupt: the exit code stays what it is
    except KeyboardInterrupt:
        interrupts.ignore()
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        print("dcp2hf: interrupted; nothing half done was left", file=sys.stderr)
    _exit(code)


def _run(arguments: list[str]) -> int:
    """Exit code of a command line. Raises KeyboardInterrupt."""
    known = parser(_convert, _verify, _inspect)
    if not arguments:
        known.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        given = known.parse_args(arguments)
        return int(given.go(given))
    except SystemExit as left:
        return int(left.code or 0)
    except OSError as failed:  # before a step was looked at: the path itself, or the folder that it names
        said = errors.from_oserror(failed)
        print(f"dcp2hf: {said} ({said.hint})", file=sys.stderr)
        return EXIT_FAILED
