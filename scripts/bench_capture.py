"""How well cameras are found: those of a prepared capture against known ones.

    python scripts/bench_capture.py                     a video of the demo scene, made and prepared
    python scripts/bench_capture.py data/colmap/fox_own data/nerfstudio/fox

The first draws a walk round the demo scene, writes it as a video, prepares that, and compares with
the poses that were drawn. The second compares images of the same name in two scenes of any formats.
Worlds are aligned by the similarity that brings the cameras nearest.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import trimesh  # noqa: E402

import pose_utils  # noqa: E402
from capture.report import scene_config  # noqa: E402
from datasets import load_dataset  # noqa: E402
from exporters.encoder import find_encoder, write_video  # noqa: E402
from procedural import scene as demo_scene  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts import prepare_capture  # noqa: E402

FOCAL = 0.9  # of the video's width


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scenes", nargs="*", type=Path, help="the capture, and the known one")
    parser.add_argument("--frames", type=int, default=180, help="of the video")
    parser.add_argument("--num_frames", type=int, default=45, help="that are used of it")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), help="of its frames")
    args = parser.parse_args(argv)
    if len(args.scenes) not in (0, 2):
        parser.error(f"{len(args.scenes)} scenes were given; two are compared, or none")
    if args.scenes:
        print(comparison(*map(poses_by_name, args.scenes)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        truth = write_walk(Path(folder) / "walk.mp4", args.frames, *args.size)
        prepare_capture.main([f"{folder}/walk.mp4", f"{folder}/scene",
                              "--num_frames", str(args.num_frames)])
        print(comparison(poses_by_name(Path(folder) / "scene"), truth))
    return 0


def write_walk(path, num_frames, width, height):
    """Write a video round the demo scene; its poses `[3, 4]` by the frames' names."""
    turn = 2 * math.pi * np.arange(num_frames) / num_frames
    places = np.stack([3.4 * np.cos(turn), 3.0 * np.sin(turn), 1.3 + 0.3 * np.sin(2 * turn)], -1)
    poses = [demo_scene.look_at(place, (0.0, 0.0, 0.05)) for place in places]
    pixtocam = demo_scene.pinhole(width, height, FOCAL * width)
    frames = (demo_scene.render(pose, pixtocam, width, height, 2, demo_scene.ROOM)[..., :3]
              for pose in poses)
    write_video(path, frames, 30, find_encoder(width, height, 30))
    return {f"frame_{i:06d}": pose[:3] for i, pose in enumerate(poses)}


def poses_by_name(folder):
    """The poses `[3, 4]` of a scene's views, by the names of their images without endings."""
    scenes = load_dataset(scene_config(folder), "train", read_pixels=False).facts()
    return {Path(name).stem: pose.double().numpy()
            for split in ("train", "test")
            for name, pose in zip(scenes[split].names, scenes[split].cameras.camtoworlds,
                                  strict=True)}


def comparison(found, known):
    """A sentence on how found poses, a `dict`, differ from known ones after alignment."""
    names = sorted(found.keys() & known.keys())
    if len(names) < prepare_capture.FEWEST:
        raise UserError(f"the two scenes have {len(names)} images of the same name; at least "
                        f"{prepare_capture.FEWEST} are wanted to align them.")
    position, angle = pose_errors(np.stack([found[n] for n in names]),
                                  np.stack([known[n] for n in names]))
    return (f"{len(names)} poses compared. In the median and at most, positions are off by "
            f"{100 * np.median(position):.2f} and {100 * position.max():.2f} % of the cameras' "
            f"extent, directions by {np.median(angle):.2f} and {angle.max():.2f} degrees.")


def pose_errors(found, known):
    """After alignment: position errors `[N]` as shares of the extent, angles `[N]` in degrees."""
    transform, _, _ = trimesh.registration.procrustes(
        found[:, :, 3], known[:, :, 3], reflection=False
    )
    aligned = pose_utils.transform_poses(found, transform)
    extent = np.linalg.norm(np.ptp(known[:, :, 3], axis=0))
    position = np.linalg.norm(aligned[:, :, 3] - known[:, :, 3], axis=1) / extent
    turned = np.swapaxes(aligned[:, :, :3], 1, 2) @ known[:, :, :3]
    cosine = np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1)
    return position, np.degrees(np.arccos(cosine))


if __name__ == "__main__":
    run_script(main)
