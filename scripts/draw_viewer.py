"""Screenshots of the viewer and of the page of a run, by a headless browser.

    python scripts/draw_viewer.py log/demo misc/pictures

Writes viewer.png and page.png into the folder. Needs chromium, chromium-driver, selenium and viser.
"""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.commands import command  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.files import write_atomically  # noqa: E402
from scripts.benchmark import make_parser  # noqa: E402
from scripts.browser import find_browser, open_browser  # noqa: E402

SIZE = (960, 600)

# Seconds that the viewer may take to listen, and that a picture may take to become sharp.
START, SHARP = 90, 300

# The client's notice that a browser draws without a GPU.
HIDE_NOTICES = "document.querySelectorAll('[class*=Notification]').forEach(node => node.remove())"


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("folder", type=Path, help="folder of the screenshots")
    args = parser.parse_args(argv)
    if find_browser() is None:
        raise UserError("no Chromium with its driver was found; install chromium and "
                        "chromium-driver.")
    args.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Browser()) as browser:
        with viewer(args.run) as address:
            browser.open(address)
            browser.wait("document.body.innerText.includes('Sharp')")
            browser.save(args.folder / "viewer.png")
        if subprocess.call(command("export.py", "--run", args.run)):
            raise UserError("export.py failed; its own message is above.")
        browser.open((args.run / "page.html").resolve().as_uri())
        browser.wait("!!window.page")
        browser.run("page.press('q')")  # Half the resolution: a GPU is missing.
        browser.wait("page.scale === 1")
        browser.save(args.folder / "page.png")


@contextlib.contextmanager
def viewer(run):
    """The address of a viewer of a run while the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(command("view.py", "--run", run, "--port", port))
    try:
        wait_for(lambda: is_listening(port), START, "the viewer did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def is_listening(port):
    """Whether a server of this computer listens at a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds, problem):
    """Wait until a condition holds. Raises UserError after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UserError(f"{problem} within {seconds} s.")
        time.sleep(0.3)


class Browser:
    """A headless browser that saves what it shows."""

    def __init__(self):
        self.driver = open_browser(*SIZE)

    def open(self, address):
        self.driver.get(address)

    def wait(self, condition):
        """Wait until an expression of JavaScript is true, and a little longer."""
        wait_for(lambda: self.driver.execute_script(f"return {condition}"), SHARP,
                 "the picture was not sharp")
        time.sleep(2)

    def run(self, statement):
        """Run a statement of JavaScript."""
        self.driver.execute_script(statement)

    def save(self, path):
        self.run(HIDE_NOTICES)
        content = self.driver.get_screenshot_as_png()
        write_atomically(path, lambda file: file.write(content))
        print(path)

    def close(self):
        self.driver.quit()


if __name__ == "__main__":
    run_script(main)
