"""Writing files and folders whole or not at all, whatever interrupts it."""

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from config import UserError, first_line


@contextmanager
def whole_file(path):
    """The name of a temporary file that is synced and renamed to `path` when the block ends well.

    Raises UserError when it cannot be written; what was at `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_suffix(".partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} could not be written ({reason}); what was there before is as it "
                        "was. Free some space or choose another disk.") from None


def write_whole(path, write):
    """Call `write(file)` on a temporary file that then becomes `path`, as `whole_file` does it."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        write(file)


@contextmanager
def sole_writer(folder, work):
    """Make `folder` and keep other processes that ask likewise out of it until the block ends.

    A folder in which nothing was left is removed. `work` is what the process does there, in words.
    Raises UserError while another one is inside. The system forgets the claim of a killed process;
    where it has no such locks (Windows), nothing is claimed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    try:
        with open(lock, "w") as file:
            if not is_claimed(file):
                raise UserError(f"another process is {work} in {folder}; wait for it, or choose "
                                "another folder.")
            yield
    finally:
        if [p.name for p in folder.iterdir()] == [".lock"]:
            with suppress(OSError):
                lock.unlink()
                folder.rmdir()


def is_claimed(file):
    """Whether the open file is this process's now, until it is closed: no other one has claimed it.

    Always so where there are no locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def new_folder(path):
    """A temporary folder that becomes `path` when the block ends well, and else is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as outer:
        unfinished = Path(outer) / path.name
        unfinished.mkdir()
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            if not path.exists():  # Else another process was first, with the same files.
                raise


def remove_abandoned(path, name):
    """Remove what `new_folder(path)` left behind in processes that were killed.

    name: of the file in it that whoever is still at work has claimed.
    """
    path = Path(path)
    for outer in path.parent.glob(f".{path.name}-*"):
        with suppress(OSError), open(outer / path.name / name, "rb") as file:
            if is_claimed(file):
                shutil.rmtree(outer)


def writable_folder(folder, name):
    """`folder`, made when missing; where it cannot be written, `name` in the user's cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mipnerf" / name
        cache.mkdir(parents=True, exist_ok=True)
        return cache


def _sync_folder(folder):
    """Make the renaming itself outlive a power cut, where folders can be synced."""
    with suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
