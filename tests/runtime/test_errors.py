"""Errors that a user can mend are one line and status 2; bugs keep their traceback."""

import errno

import pytest

from runtime.errors import UserError, first_line, is_out_of_memory, run_script


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("error,message", [
    (UserError("no such scene; give another."), "error: no such scene; give another."),
    (MemoryError("2 PiB"), "there is not enough memory (2 PiB)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
    (RuntimeError("CUDA out of memory."), "reduce --chunk"),
    (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; choose"),
])
def test_a_users_error_is_one_line_and_status_2(error, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(raising(error))
    text = capsys.readouterr().err
    assert ended.value.code == 2 and message in text and text.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "broken"), KeyError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_script(raising(error))


def test_status_is_what_main_returns_and_ctrl_c_is_130():
    for main, status in ((lambda: 7, 7), (lambda: None, None), (raising(KeyboardInterrupt()), 130)):
        with pytest.raises(SystemExit) as ended:
            run_script(main)
        assert ended.value.code == status


def test_arguments_reach_main():
    with pytest.raises(SystemExit) as ended:
        run_script(lambda a, b: a + b, 1, 2)
    assert ended.value.code == 3


def test_first_line_of_an_empty_message_is_the_type():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_only_failed_allocations_are_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
