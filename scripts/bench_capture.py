"""Measure the accuracy of estimated cameras: those of a prepared capture against known ones.

    python scripts/bench_capture.py                     a rendered video of the demo scene
    python scripts/bench_capture.py data/colmap/fox_own data/nerfstudio/fox

The first renders a walk around the demo scene as a video, prepares that as a capture, and compares
the estimated poses with the rendered ones. The second compares images of the same name in two
scenes of any format. The worlds are aligned by the best-fitting similarity of camera positions.
"""

import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import trimesh  # noqa: E402

import pose_utils  # noqa: E402
from capture.photos import MIN_IMAGES  # noqa: E402
from capture.report import scene_config  # noqa: E402
from datasets import load_dataset  # noqa: E402
from exporters.encoder import find_encoder, write_video  # noqa: E402
from procedural.scene import look_at, pinhole  # noqa: E402
from procedural.still_life import ROOM  # noqa: E402
from procedural.tracing import render  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts import prepare_capture  # noqa: E402
from scripts.benchmark import make_parser  # noqa: E402

# The focal length of the rendered video, relative to its width.
FOCAL_RATIO = 0.9


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("scenes", nargs="*", type=Path, help="the capture and the known scene")
    parser.add_argument("--frames", type=int, default=180, help="number of frames of the video")
    parser.add_argument("--num_frames", type=int, default=45, help="number of frames to use of it")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), help="size of a frame")
    args = parser.parse_args(argv)
    if len(args.scenes) not in (0, 2):
        parser.error(f"{len(args.scenes)} scenes were given; give two to compare, or none")
    if args.scenes:
        print(comparison(*map(poses_by_name, args.scenes)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        known = write_walk(Path(folder) / "walk.mp4", args.frames, *args.size)
        prepare_capture.main([f"{folder}/walk.mp4", f"{folder}/scene",
                              "--num_frames", str(args.num_frames)])
        print(comparison(poses_by_name(Path(folder) / "scene"), known))
    return 0


def write_walk(path, num_frames, width, height):
    """Write a video of a walk around the demo scene; returns its poses `[3, 4]` by frame name."""
    angle = 2 * math.pi * np.arange(num_frames) / num_frames
    positions = np.stack(
        [3.4 * np.cos(angle), 3.0 * np.sin(angle), 1.3 + 0.3 * np.sin(2 * angle)], -1)
    poses = [look_at(position, (0.0, 0.0, 0.05)) for position in positions]
    pixtocam = pinhole(width, height, FOCAL_RATIO * width)
    frames = (render(pose, pixtocam, width, height, 2, ROOM)[..., :3] for pose in poses)
    write_video(path, frames, 30, find_encoder(width, height, 30))
    return {f"frame_{i:06d}": pose[:3] for i, pose in enumerate(poses)}


def poses_by_name(folder):
    """The poses `[3, 4]` of a scene's views, by the names of their images without suffixes."""
    scenes = load_dataset(scene_config(folder), "train", read_pixels=False).scenes()
    return {Path(name).stem: pose.double().numpy()
            for split in ("train", "test")
            for name, pose in zip(scenes[split].names, scenes[split].cameras.camtoworlds,
                                  strict=True)}


def comparison(estimated, known):
    """The errors of estimated poses, in a sentence; both arguments are dicts of poses by name."""
    names = sorted(estimated.keys() & known.keys())
    if len(names) < MIN_IMAGES:
        raise UserError(f"the two scenes have {len(names)} images of the same name; at least "
                        f"{MIN_IMAGES} are needed to align them.")
    position, angle = pose_errors(np.stack([estimated[n] for n in names]),
                                  np.stack([known[n] for n in names]))
    return (f"{len(names)} poses compared. Median and largest errors: positions "
            f"{100 * np.median(position):.2f} and {100 * position.max():.2f} % of the cameras' "
            f"extent, directions {np.median(angle):.2f} and {angle.max():.2f} degrees.")


def pose_errors(estimated, known):
    """After alignment: position errors `[N]` relative to the extent, angles `[N]` in degrees."""
    transform, _, _ = trimesh.registration.procrustes(
        estimated[:, :, 3], known[:, :, 3], reflection=False
    )
    aligned = pose_utils.transform_poses(estimated, transform)
    extent = np.linalg.norm(np.ptp(known[:, :, 3], axis=0))
    position = np.linalg.norm(aligned[:, :, 3] - known[:, :, 3], axis=1) / extent
    rotation = np.swapaxes(aligned[:, :, :3], 1, 2) @ known[:, :, :3]
    cosine = np.clip((np.trace(rotation, axis1=1, axis2=2) - 1) / 2, -1, 1)
    return position, np.degrees(np.arccos(cosine))


if __name__ == "__main__":
    run_script(main)
