"""`UserError`, the error that a user can fix, and how scripts report it."""

import errno
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# A full disk, an exceeded quota, a file above its size limit.
NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class UserError(Exception):
    """Unusable input. The message is a sentence: what was found, what is expected, what to change.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On the CPU, PyTorch raises a plain RuntimeError for that."""
    text = str(error).lower()
    return (isinstance(error, MemoryError) or "out of memory" in text
            or "can't allocate memory" in text)


class PrintHandler(logging.Handler):
    """Prints to whatever `sys.stdout` is at the time, so that silenced ranks stay silent."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def run_script(main: Callable[..., Any], *args: Any) -> NoReturn:
    """Exit with the status that `main(*args)` returns, or with 2 after printing a user's error.

    What library code logs is printed.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[PrintHandler()])
    with exit_on_user_error():
        sys.exit(main(*args))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print errors that a user can fix as one line and exit with status 2; Ctrl-C exits with 130.

    Other exceptions are bugs and keep their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal cannot encode becomes a question mark.
            stream.reconfigure(errors="replace")
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """The message for the user about an exception; None if it is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.errno in NO_SPACE or error.filename is not None):
        advice = "free some space" if error.errno in NO_SPACE else "choose another place"
        return f"{error.filename or 'a file'}: {error.strerror}; {advice}."
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
        return (f"there is not enough memory ({first_line(error)}); reduce --chunk, "
                "--micro_batch, --width and --height, or --grid_size.")
    return None
