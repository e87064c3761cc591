"""Owns the `dcp2hf` command: flags, what is shown to whom, exit codes. Thin: the work is in `convert` and `inspect`."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from converter.checkpoint import step_selection
from converter.cli.options import (
    AssetsOption,
    BeforePublishOption,
    HookTimeoutOption,
    LogsOption,
    MapOption,
    NamesOption,
    RestrictOption,
    RootsOption,
    RunConfigOption,
    SignOption,
    StatisticsOption,
    TokenizerOption,
    parse_command,
    parse_size,
    search_of,
)
from converter.cli.progress import Report, reporter
from converter.cli.tables import show
from converter.cli.verify_report import show_verify_result as show_verdict
from converter.common import errors, interrupts, names_on_disk, version
from converter.common.files import exists, is_folder
from converter.common.metadata_limits import Limits
from converter.convert import convert_step
from converter.inspect import describe, preview
from converter.publish.publish_hooks import PublishHooks
from converter.run.options import Options
from converter.verify import locate, verify

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NOTHING, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,  # share/ has it for both commands, and starts no Python at each TAB
    pretty_exceptions_enable=False,
    help="Converts TorchTitan checkpoints to HuggingFace directories, exactly.",
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"dcp2hf {version.text()}")
        _exit(EXIT_OK)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="The version and its build.")
    ] = False,
) -> None:
    """Converts TorchTitan checkpoints to HuggingFace directories, exactly."""


@app.command()
def convert(
    argument: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", show_default=False, help="A step directory, a run root holding several, or a *.distcp file."
        ),
    ] = None,
    dcp_path: Annotated[
        Path | None, typer.Option("--dcp-path", metavar="PATH", readable=False, help="PATH, as an option.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be converted to where, and why others not; write nothing.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="The folder in which step-N-hf is made (default: beside the step; see docs).",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the export; auto is the run's training.dtype."),
    ] = "auto",
    run_config: RunConfigOption = None,
    run_config_name: NamesOption = None,
    hf_assets: AssetsOption = None,
    tokenizer: TokenizerOption = None,
    logs_root: LogsOption = None,
    assets_root: RootsOption = None,
    path_map: MapOption = None,
    restrict_assets: RestrictOption = None,
    architecture: Annotated[
        Literal["base", "run"],
        typer.Option(
            help="run: where base assets and run differ, or there is no base config.json, take what the run recorded."
        ),
    ] = "base",
    untie: Annotated[
        bool,
        typer.Option(
            "--untie",
            help="Export embedding and head as two where the run calls them tied and they differ (TorchTitan 0.2.0, 0.2.1).",
        ),
    ] = False,
    ignore_tensors: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-tensors",
            metavar="PATTERN",
            help="Leave out tensors beside the model whose whole name matches: rng_state, 'ema.*' (repeatable).",
        ),
    ] = None,
    allow_routing_drift: Annotated[
        bool, typer.Option("--allow-routing-drift", help="Publish a MoE whose balancing bias is not zero.")
    ] = False,
    accept_copy: Annotated[
        bool,
        typer.Option("--accept-copy", help="Accept DCP shards newer than .metadata (a copy): watched for a minute."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a published directory that holds somebody's files.")
    ] = False,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of a HF shard.")] = "50GB",
    threads: Annotated[
        int,
        typer.Option(min=0, help="That move bytes; 0: as many as cores, at most 4."),
    ] = 0,
    forward_check: Annotated[
        Literal["full", "off"], typer.Option(help="Compare TorchTitan's logits with HF's before publishing.")
    ] = "full",
    if_exists: Annotated[
        Literal["overwrite", "skip"], typer.Option(help="skip: leave what is up to date, or not ours.")
    ] = "overwrite",
    ours_only: Annotated[
        bool, typer.Option("--ours-only", help="Replace only an export that has our manifest; --force replaces all.")
    ] = False,
    io_bandwidth_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Read and write at most so many bytes a second (200MB).")
    ] = None,
    metadata_memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for reading .metadata, beside 24 times its size.")
    ] = "512MiB",
    metadata_deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time for reading it, beside 1 s for each 2 MB.")
    ] = 30.0,
    before_publish: BeforePublishOption = None,
    sign: SignOption = None,
    hook_timeout: HookTimeoutOption = 600.0,
    statistics: StatisticsOption = None,
    events: Annotated[
        bool, typer.Option("--events", help="One JSON object a line on stdout, and nothing else.")
    ] = False,
) -> None:
    """Convert a step, or every step of a run."""
    if argument is not None and dcp_path is not None and argument.absolute() != dcp_path.absolute():
        _usage(f"two paths are given, {argument} and --dcp-path {dcp_path}: name one")
    path = argument or dcp_path
    if path is None:
        _usage("no PATH is given: dcp2hf convert PATH, a step directory or a folder that holds step-*")
    options = Options(
        output=output and output.absolute(), dtype=dtype, run_config=run_config, run_config_names=tuple(run_config_name or ()), logs_roots=tuple(logs_root or ()),
        search=search_of(hf_assets, tokenizer, assets_root, path_map, restrict_assets),
        architecture=architecture, untie=untie, ignore_tensors=tuple(ignore_tensors or ()), allow_routing_drift=allow_routing_drift, accept_copy=accept_copy, force=force,
        max_shard_size=parse_size(max_shard_size, "--max-shard-size"), threads=threads, forward_check=forward_check, if_exists=if_exists, ours_only=ours_only,
        metadata_limits=Limits(parse_size(metadata_memory_limit, "--metadata-memory-limit"), metadata_deadline),
        io_bandwidth_limit=parse_size(io_bandwidth_limit, "--io-bandwidth-limit") if io_bandwidth_limit else 0,
        hooks=PublishHooks(parse_command(before_publish, "--before-publish"), parse_command(sign, "--sign"), hook_timeout),
        statistics=statistics and statistics.absolute(),
    )  # fmt: skip
    if events and (number := names_on_disk.step_number(path.name)) is not None and not exists(path):
        gone = errors.StepVanished("the step is gone", path=path, hint="the trainer purged it")
        with reporter(events=True) as report:
            report("conversion_failed", gone.as_event() | {"step": number})
    steps, named = _steps(path)
    if output is not None and not is_folder(output.absolute().parent):
        _usage(f"--output {output}: its parent folder does not exist")
    run = None if named else steps[0].parent
    if dry_run and not events:
        for line in _passed_over(run) if run else ():
            print(line)
        _exit(_dry_run(steps, named, options))
    with reporter(events=events) as report:
        for entry, why in step_selection.passed_over(run) if run else ():
            report("conversion_skipped", {"path": str(entry), "reason": why})
        _exit(_dry_run(steps, named, options, report) if dry_run else _convert_all(steps, named, options, report))


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A step directory, or its -hf.")],
    sample: Annotated[str, typer.Option(metavar="N/T", help="Only the N-th of T parts of the weights.")] = "1/1",
    run_config: RunConfigOption = None,
    run_config_name: NamesOption = None,
    hf_assets: AssetsOption = None,
    tokenizer: TokenizerOption = None,
    logs_root: LogsOption = None,
    assets_root: RootsOption = None,
    path_map: MapOption = None,
    restrict_assets: RestrictOption = None,
) -> None:
    """Is the published directory exactly what its checkpoint gives (or, if that is gone, what its manifest says)?"""
    search = search_of(hf_assets, tokenizer, assets_root, path_map, restrict_assets)
    options = Options(
        run_config=run_config, run_config_names=tuple(run_config_name or ()), logs_roots=tuple(logs_root or ()), search=search
    )  # fmt: skip
    match = re.fullmatch(r"(\d+)/(\d+)", sample)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        _usage(f"--sample {sample} is not N/T with N from 1 to T")
    part = (int(match[1]), int(match[2]))
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
        _exit(EXIT_FAILED)
    try:
        verdict = verify(step, published, number, options, part)
    except (errors.ConversionError, OSError) as failed:
        why = errors.from_oserror(failed, published) if isinstance(failed, OSError) else failed
        print(f"not verified: {why} ({why.hint})")
        _exit(EXIT_FAILED)
    show_verdict(verdict, published, part)
    _exit(EXIT_OK if verdict.equal else EXIT_FAILED)


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A step directory, or a run root.")],
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """What is in this checkpoint: complete or why not, names, tensors, dtypes, ranks, sizes."""
    steps, named = _steps(path)
    for line in () if named else _passed_over(steps[0].parent):
        print(line, file=sys.stderr)
    described = [describe(step) for step in steps]
    if as_json:
        print(json.dumps(described if len(described) > 1 else described[0], indent=2))
    else:
        show(described)
    _exit(EXIT_OK if all(said["state"] == "complete" for said in described) else EXIT_FAILED)


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


def _convert_all(steps: list[Path], named: bool, options: Options, report: Report) -> int:
    """Exit code of converting these steps."""
    return _each(steps, named, lambda step: convert_step(step, options, report), partial(_refused, report))


def _refused(report: Report, step: Path, error: errors.ConversionError, is_failure: bool) -> None:
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


def _dry_run(steps: list[Path], named: bool, options: Options, report: Report | None = None) -> int:
    """The exit code that converting these steps has, as far as a look tells. Said as events to `report`, or as text."""

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
    if code == EXIT_INTERRUPTED:  # typer too makes this of a KeyboardInterrupt, without a word
        print("dcp2hf: interrupted; nothing half done was left", file=sys.stderr)
    _exit(code)


def _run(arguments: list[str]) -> int:
    """Exit code of a command line. Raises KeyboardInterrupt."""
    try:
        code = typer.main.get_command(app)(arguments, prog_name="dcp2hf", standalone_mode=False)
    except SystemExit as left:
        return int(left.code or 0)
    except OSError as failed:  # before a step was looked at: the path itself, or the folder that it names
        said = errors.from_oserror(failed)
        print(f"dcp2hf: {said} ({said.hint})", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:
        if show_usage := getattr(error, "show", None):
            show_usage()
            return EXIT_USAGE
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from None
        raise
    return code if isinstance(code, int) else EXIT_OK
