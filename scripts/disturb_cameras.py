"""Copy a scene and disturb its training cameras, to see how well training refines them.

    python scripts/disturb_cameras.py data/nerf_synthetic/lego data/nerf_synthetic/lego_disturbed
    python train.py --scene lego_disturbed --refine_cameras

Each training camera is turned about a random axis by `--degrees`, and moved in a random direction
by `--percent` of its distance to the point at which the cameras look. Test cameras stay. The scene
is in Blender's, nerfstudio's, COLMAP's or LLFF's format.
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import pose_utils  # noqa: E402
from cameras.refinement import rotation_matrices  # noqa: E402
from loaders.checks import check_poses, read_json  # noqa: E402
from loaders.colmap import import_pycolmap, read_model  # noqa: E402
from loaders.folders import every_nth  # noqa: E402
from loaders.nerfstudio import listed_splits  # noqa: E402
from loaders.transforms import read_frames  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.copies import copied_scene  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder of a scene")
    parser.add_argument("destination", type=Path, help="folder to write; must be new")
    parser.add_argument("--degrees", type=float, default=1.0,
                        help="angle of each turn (default: 1)")
    parser.add_argument("--percent", type=float, default=1.0, help="length of each move, of the "
                        "distance to what the cameras look at (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random directions (default: 0)")
    parser.add_argument("--llffhold", type=int, default=8, help="every n-th view of a capture is a "
                        "test view (default: 8)")
    args = parser.parse_args(argv)
    disturb = next((function for marker, function in FORMATS.items()
                    if (args.source / marker).exists()), None)
    if disturb is None:
        raise UserError(f"{args.source} holds none of {', '.join(FORMATS)}; give the folder of a "
                        "scene.")
    with copied_scene(args.source, args.destination) as folder:
        count = disturb(folder, args)
    print(f"{args.source} -> {args.destination}: {count} training cameras turned by "
          f"{args.degrees:g} degrees and moved by {args.percent:g}%.")


def disturb_poses(poses, args):
    """Camera-to-world matrices `[N, 3, 4]`, each turned about itself and moved."""
    rng = np.random.default_rng(args.seed)
    axes, directions = rng.normal(size=(2, len(poses), 3))
    axes, directions = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (axes, directions))
    distances = np.linalg.norm(poses[:, :, 3] - pose_utils.focus_point(poses), axis=-1)
    turns = rotation_matrices(torch.as_tensor(math.radians(args.degrees) * axes)).numpy()
    moved = poses[:, :, 3] + 0.01 * args.percent * distances[:, None] * directions
    return np.concatenate([turns @ poses[:, :, :3], moved[:, :, None]], axis=2)


def disturb_blender(folder, args):
    """Disturb all cameras of `transforms_train.json`; returns their number."""
    path = folder / "transforms_train.json"
    meta = read_json(path)
    return disturb_frames(path, meta, range(len(read_frames(meta, path)[0])), args)


def disturb_nerfstudio(folder, args):
    """Disturb the training cameras of `transforms.json`; returns their number."""
    path = folder / "transforms.json"
    meta = read_json(path)
    names, _ = read_frames(meta, path)
    listed = listed_splits(meta, path)
    order = sorted(range(len(names)), key=names.__getitem__)
    if listed.get("train"):
        chosen = [i for i in order if names[i] in listed["train"]]
    elif listed:
        chosen = [i for i in order if names[i] not in set().union(*listed.values())]
    else:
        chosen = [order[i] for i in every_nth("train", len(order), args.llffhold, path)]
    return disturb_frames(path, meta, chosen, args)


def disturb_frames(path, meta, chosen, args):
    """Disturb the frames `chosen` of a transforms file, and write it; returns their number."""
    names, matrices = read_frames(meta, path)
    poses = disturb_poses(check_poses(matrices, path, names)[list(chosen)], args)
    for i, pose in zip(chosen, pose_utils.homogeneous(poses), strict=True):
        meta["frames"][i]["transform_matrix"] = pose.tolist()
    path.write_text(json.dumps(meta, indent=1))
    return len(poses)


def disturb_colmap(folder, args):
    """Disturb the training cameras of a sparse model; returns their number."""
    pycolmap = import_pycolmap()
    path = folder / "sparse"
    path = path / "0" if (path / "0").is_dir() else path
    model = read_model(path)
    registered = sorted((im for im in model.images.values() if im.has_pose),
                        key=lambda image: image.name)
    chosen = [registered[i] for i in every_nth("train", len(registered), args.llffhold, path)]
    matrices = np.stack([image.cam_from_world().matrix() for image in chosen])
    poses = disturb_poses(pose_utils.from_opencv(matrices), args)
    to_cameras = np.linalg.inv(pose_utils.homogeneous(poses * [1.0, -1.0, -1.0, 1.0]))
    for image, to_camera in zip(chosen, to_cameras, strict=True):
        image.frame.set_cam_from_world(image.camera_id, pycolmap.Rigid3d(to_camera[:3]))
    for file in path.glob("*.txt"):
        file.unlink()  # The binary model is written beside them.
    model.write(str(path))
    return len(poses)


def disturb_llff(folder, args):
    """Disturb the training cameras of `poses_bounds.npy`; returns their number."""
    path = folder / "poses_bounds.npy"
    table = np.load(path).astype(np.float64)
    chosen = every_nth("train", len(table), args.llffhold, path)
    matrices = table[:, :15].reshape(-1, 3, 5)
    down, right, rest = np.split(matrices[chosen, :, :4], [1, 2], axis=2)
    poses = disturb_poses(np.concatenate([right, -down, rest], axis=2), args)
    right, up, rest = np.split(poses, [1, 2], axis=2)
    matrices[chosen, :, :4] = np.concatenate([-up, right, rest], axis=2)
    table[:, :15] = matrices.reshape(-1, 15)
    np.save(path, table)
    return len(poses)


FORMATS = {"transforms_train.json": disturb_blender, "transforms.json": disturb_nerfstudio,
           "sparse": disturb_colmap, "poses_bounds.npy": disturb_llff}


if __name__ == "__main__":
    run_script(main)
