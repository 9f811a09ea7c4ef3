"""How fast the viewer is: pictures per second while a camera moves, and seconds until it is sharp.

    python scripts/bench_viewer.py log/demo log/flower --size 640 480

No browser takes part: a camera circles the scene at 30 poses a second and stops. Each picture is
encoded as for a browser.
"""

import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from cameras.paths import path_cameras  # noqa: E402
from config import get_config, positive_int  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    environment_line,
    make_parser,
    table_head,
    table_row,
)
from viewer.loaded_run import Shot, load_run  # noqa: E402
from viewer.poses import stage_of  # noqa: E402
from viewer.refining import PREVIEW_QUALITY  # noqa: E402
from viewer.worker import Worker  # noqa: E402

POSES_PER_SECOND = 30


class Recorder:
    """Takes pictures as a browser's connection does; keeps their times and sizes."""

    def __init__(self):
        self.times, self.sizes = [], []
        self.is_sharp = threading.Event()

    def __call__(self, picture, shot, seconds):
        bgr = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
        quality = [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY]
        cv2.imencode(*((".png", bgr) if picture.is_final else (".jpeg", bgr, quality)))
        self.times.append(time.perf_counter())
        self.sizes.append(picture.image.shape[1::-1])
        if picture.is_final:
            self.is_sharp.set()


def shots_around(loaded, count, width, height):
    """Shots on the circle of `visualize.py --path spherical`."""
    cameras = loaded.scene.cameras.to("cpu")
    poses = path_cameras(cameras, "spherical", count).camtoworlds.double().numpy()
    fov = stage_of(cameras).fov
    return [Shot(tuple(pose.flatten().tolist()), fov, width, height) for pose in poses]


def measure(loaded, seconds, width, height):
    """Pictures per second, their median size, and the seconds until the last one is sharp."""
    recorder = Recorder()
    worker = Worker(loaded)
    worker.add_screen(0, recorder)
    shots = shots_around(loaded, 30 * POSES_PER_SECOND, width, height)
    worker.request(0, shots[-1])
    worker.start()
    recorder.is_sharp.wait()
    begin, first = time.perf_counter(), len(recorder.times)
    for i in range(round(seconds * POSES_PER_SECOND)):
        worker.request(0, shots[i % len(shots)])
        time.sleep(max(0.0, begin + (i + 1) / POSES_PER_SECOND - time.perf_counter()))
    moving, stopped = len(recorder.times) - first, time.perf_counter()
    size = [round(statistics.median(side)) for side in np.transpose(recorder.sizes[first:])]
    recorder.is_sharp.clear()
    recorder.is_sharp.wait()
    worker.stop()
    return moving / (stopped - begin), size, recorder.times[-1] - stopped


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--size", type=positive_int, nargs=2, default=(640, 480),
                        metavar=("WIDTH", "HEIGHT"), help="of the final picture")
    parser.add_argument("--seconds", type=float, default=5.0, help="during which the camera moves")
    args = parser.parse_args(argv)
    print(environment_line())
    print(table_head(["run", "moving: pictures a second", "their median size",
                      "standing: {}x{} is sharp after".format(*args.size)]))
    for folder in args.runs:
        loaded = load_run(get_config(["--run", str(folder), "--device", args.device], "view"))
        rate, size, seconds = measure(loaded, args.seconds, *args.size)
        print(table_row([folder.name, f"{rate:.1f}", "{}x{}".format(*size), f"{seconds:.2f} s"]),
              flush=True)
    return 0


if __name__ == "__main__":
    run_script(main)
