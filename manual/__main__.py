"""`make manual`: writes `share/`, as an installation has it below its prefix, and docs/schemas."""

from pathlib import Path

from manual import bash, fish, man, prose, schemas, zsh
from manual.commands import PROGRAMS

SHARE = Path(__file__).parents[1] / "share"


def files() -> dict[str, str]:
    """Every file of `share/` by its path there: where man, bash-completion, zsh and fish look below a prefix."""
    made = {}
    for program in (read() for read in PROGRAMS):
        name, section = program.name, prose.PAGES[program.name].section
        made[f"man/man{section}/{name}.{section}"] = man.page(program)
        made[f"bash-completion/completions/{name}"] = bash.script(program)
        made[f"zsh/site-functions/_{name}"] = zsh.script(program)
        made[f"fish/vendor_completions.d/{name}.fish"] = fish.script(program)
    return made


if __name__ == "__main__":
    for folder, made in ((SHARE, files()), (schemas.DOCS / "schemas", schemas.files())):
        for name, text in made.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
