"""A reader who does what a page says, from the top, in one folder and one Python session."""

from __future__ import annotations

import doctest
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from tests.docs.pages import Block

FLAGS = doctest.ELLIPSIS | doctest.REPORT_NDIFF
# What a page may call besides `surgery`: nothing that installs, fetches or writes elsewhere.
PROGRAMS = {"python": sys.executable, "cat": "cat", "ls": "ls"}


@dataclass(frozen=True)
class Command:
    """One command of a console block: what is typed and what is shown."""

    line: int
    typed: str
    shown: str


@dataclass
class Reader:
    """Runs the blocks of one page one after another, and keeps what went otherwise.

    Attributes:
        folder: where files are written and commands run.
        names: what Python knows by now.
        code: exit code of the last command.
        wrong: what was not as the page shows it.
    """

    folder: Path
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    code: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Do what a block says."""
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.is_doctest:
            self._python(block)
        elif block.language == "console":
            for command in commands(block):
                self._command(block, command)
        elif block.language == "python":
            exec(compile(block.text, block.where, "exec"), self.names)

    def _python(self, block: Block) -> None:
        test = doctest.DocTest(
            doctest.DocTestParser().get_examples(marked(block.text), block.where),
            {},
            block.where,
            f"docs/{block.page}",
            block.line - 1,
            block.text,
        )
        # A test copies what it is given, and the next block is to know what this one made.
        test.globs = self.names
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=FLAGS)
        runner.run(test, out=said.append, clear_globs=False)
        if runner.failures:
            self.wrong.append("".join(said))

    def _command(self, block: Block, command: Command) -> None:
        shown = command.shown
        if command.typed == "echo $?":
            found = f"{self.code}\n"
            self.code = 0
        else:
            if self.code:
                self.wrong.append(f"{block.where}: exit code {self.code}, and no `echo $?`")
            found, self.code = self._output(shlex.split(command.typed))
        where = f"docs/{block.page}:{block.line + command.line}"
        # A blank line cannot be told from the end of what is shown, at the end alone.
        if not doctest.OutputChecker().check_output(
            shown.rstrip() + "\n", found.rstrip() + "\n", FLAGS
        ):
            self.wrong.append(f"{where}: $ {command.typed}\n--- shown\n{shown}--- found\n{found}")

    def _output(self, argv: list[str]) -> tuple[str, int]:
        if argv[0] == "surgery":
            from surgery.cli.main import cli

            result = CliRunner().invoke(cli, argv[1:], prog_name="surgery")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.output, result.exit_code
        done = subprocess.run(
            [PROGRAMS[argv[0]], *argv[1:]],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout, done.returncode


def marked(text: str) -> str:
    """A doctest whose output goes on behind blank lines: the fence says where it ends."""
    lines = text.splitlines()
    for n, line in enumerate(lines):
        following = next((later for later in lines[n:] if later), ">>> ")
        if not line and not following.startswith(">>> "):
            lines[n] = "<BLANKLINE>"
    return "\n".join(lines) + "\n"


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block; a backslash at the end of a line continues it."""
    lines = block.text.replace("\\\n", "\\\0").splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("$ ")]
    skipped = 0
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        typed = lines[start][2:]
        shown = "".join(f"{line}\n" for line in lines[start + 1 : end])
        yield Command(start + skipped, typed.replace("\\\0", " "), shown)
        skipped += typed.count("\\\0")
