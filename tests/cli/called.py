"""The command line, run in this process, where what its commands import has been imported already.

A process of its own takes several seconds to import PyTorch. tests/test_cli.py and others run real ones.
"""

import contextlib
import io
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn

import pytest

from pthserve.cli import main


def called(*arguments: str | Path) -> CompletedProcess[str]:
    """The exit code of `pthserve *arguments`, what it printed, and what it complained of."""
    words = ["pthserve", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as changes,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        changes.setattr(sys, "argv", words)
        changes.setattr(main, "leave", _leave)
        try:
            main.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())


def _leave(code: int, message: str = "") -> NoReturn:
    """As `exits.leave`, but for the end of the process."""
    if message:
        print(message, file=sys.stderr)
    raise SystemExit(code)
