"""Scripts in processes of their own that need not import PyTorch again.

A server that has imported the scripts, and computed nothing, forks each process. It can be killed,
signalled and limited like one that a shell starts.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
# The scripts, and what they import only once they run.
SERVER.set_forkserver_preload(["train", "evaluate", "visualize", "extract_mesh", "torch._dynamo",
                               "torch.utils.tensorboard", "skimage.metrics"])


def run_main(words, files, limit, variables):
    """In the new process: the script `words[0]`, as a shell would run it."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


class Script:
    """A running script, with the methods of `subprocess.Popen` that the tests use.

    limit: the largest file that it may write, in bytes; variables: added to its environment.
    """

    def __init__(self, *words, limit=None, **variables):
        self.words = list(map(str, words))
        self.outputs = [tempfile.NamedTemporaryFile("r") for _ in range(2)]
        self.process = SERVER.Process(target=run_main, args=(
            self.words, [file.name for file in self.outputs], limit, variables))
        self.process.start()

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def printed(self):
        """The output so far."""
        return Path(self.outputs[0].name).read_text()

    def communicate(self, timeout=120):
        """Its standard output and errors, once it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutExpired(self.words, timeout)
        return tuple(file.read() for file in self.outputs)


def run_script(*words, **options):
    """The `CompletedProcess` of a script; options as those of `Script`."""
    script = Script(*words, **options)
    out, err = script.communicate()
    return CompletedProcess(script.words, script.returncode, out, err)


def run_ranks(count, *words):
    """The output of a script on `count` CPU ranks, which all have to succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [Script(*words, "--device", "cpu", TORCHELASTIC_RUN_ID="tests", WORLD_SIZE=str(count),
                    RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in range(count)]
    outputs = [rank.communicate(300) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs
    return "".join(out for out, _ in outputs)
