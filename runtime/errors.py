"""Errors that users can mend, and how a script ends."""

import errno
import sys

# A full disk, a spent quota, a file grown beyond its limit.
NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class UserError(Exception):
    """Input that cannot be used: one sentence saying what was found, wanted, and what to change."""


def first_line(error):
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_script(main):
    """Exit with what `main()` returns; what a user can mend is one sentence and status 2."""
    # A terminal that cannot show a letter of a path shows a question mark.
    sys.stdout.reconfigure(errors="replace")
    sys.stderr.reconfigure(errors="replace")
    try:
        sys.exit(main())
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        if error.errno not in NO_SPACE and error.filename is None:
            raise
        advice = "free some space" if error.errno in NO_SPACE else "choose another place"
        sentence = f"{error.filename or 'a file'}: {error.strerror}; {advice}."
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sentence = (f"there is not enough memory ({first_line(error)}); take a smaller --chunk, "
                    "--micro_batch, --width and --height, or --grid_size.")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def is_out_of_memory(error):
    """Whether memory did not suffice; PyTorch has no type of its own for the CPU's."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(w in str(error).lower() for w in words)
