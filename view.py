"""Look at a trained model, or at one in training, in the browser.

    python view.py --run log/blender_lego_zipnerf
    python view.py --run log/lego --port 9000             on another port
    python view.py --run log/lego --host 0.0.0.0          for other computers, without a password

Needs only the run folder; with the dataset, photographs are shown beside renderings. A run that is
still training is followed, and nothing is written into its folder.
"""

import getpass
import socket
import time
from collections.abc import Sequence

from config import early_config, get_config
from runtime.errors import run_script

if __name__ == "__main__":
    early_config("view")

from viewer.app import Viewer
from viewer.loaded_run import load_run

LOCAL = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> int:
    config = get_config(argv, "view")
    viewer = Viewer(config, load_run(config), config.host, config.port)
    try:
        print(address(config.host, viewer.port), flush=True)
        while True:
            time.sleep(3600)
    finally:
        viewer.stop()


def address(host: str, port: int) -> str:
    """The line that names the viewer's address, and the way to it on a remote machine."""
    name = socket.gethostname()
    if host not in LOCAL:
        shown = name if host in ("0.0.0.0", "::") else host
        return f"Open http://{shown}:{port} in a browser; anyone in the network can. End: Ctrl-C."
    return (f"Open http://localhost:{port} in a browser. End: Ctrl-C.\n"
            f"On a remote machine, first run on your own:  ssh -L {port}:localhost:{port} "
            f"{getpass.getuser()}@{name}")


if __name__ == "__main__":
    run_script(main)
