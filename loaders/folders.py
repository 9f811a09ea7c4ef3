"""Where scenes and their images lie, and which views are for tests."""

import hashlib
from pathlib import Path

import numpy as np

import image_utils
from runtime.errors import UserError
from runtime.files import new_folder, writable_folder

DEMO = "demo"


def find_scene(config, folders, write_demo):
    """The folder of `--scene`; the demo scene is made by `write_demo(folder)` on first use."""
    data_dir = Path(config.data_dir)
    if Path(config.scene).is_absolute():
        places = [Path(config.scene)]
    else:
        places = [data_dir / folder / config.scene for folder in folders]
        places.append(data_dir / config.scene)
    for place in places:
        if place.is_dir():
            return place
    if config.scene == DEMO:
        folder = writable_folder(data_dir / folders[0], folders[0]) / DEMO
        if not folder.is_dir():
            print(f"Making the demo scene in {folder} ...", flush=True)
            write_demo(folder)
        return folder
    looked = " or ".join(str(place) for place in places)
    raise UserError(
        f"the scene {config.scene!r} is not at {looked}; download it (scripts/download_*.sh) or "
        "set --data_dir and --scene (a name or a path)."
    )


def image_folder(root, factor):
    """The folder of images at `factor`: the shipped one, or one made from the next finer one.

    Raises UserError where the scene ships nothing as fine as `factor`.
    """
    name = "images" if factor == 1 else f"images_{factor}"
    if (root / name).is_dir():
        return root / name
    shipped = shipped_folders(root)
    finer = [f for f in shipped if f < factor]
    if not finer:
        there = ", ".join(str(f) for f in sorted(shipped)) or "no images folder at all"
        raise UserError(f"{root} has no images at --factor {factor} or finer; it ships: "
                        f"{there}. Set --factor to one of these or a coarser one.")
    source = max(finer)
    # Scenes of the same name must not share a folder in the cache.
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    target = writable_folder(root, f"{root.name}_{digest}") / name
    if not target.is_dir():
        _make_smaller(shipped[source], target, factor, factor / source)
    return target


def shipped_folders(root):
    """The folders of images that a scene ships: a `dict` from factors."""
    shipped = {1: root / "images"} if (root / "images").is_dir() else {}
    for folder in root.glob("images_*"):
        if folder.name[7:].isdigit() and folder.is_dir():
            shipped[int(folder.name[7:])] = folder
    return shipped


def _make_smaller(source, target, factor, ratio):
    files = image_utils.list_images(source)
    print(f"Making {len(files)} images at --factor {factor} in {target} ...")
    with new_folder(target) as folder:
        for file in files:
            image = image_utils.read_image(file, 3)
            height, width = (max(1, round(side / ratio)) for side in image.shape[:2])
            small = image_utils.resize_area(image, width, height)
            made = folder / file.relative_to(source).with_suffix(".png")
            made.parent.mkdir(parents=True, exist_ok=True)
            image_utils.write_image(made, small)


def every_nth(split, count, hold, source):
    """Indices of a split of `count` views: every `hold`-th is a test view, and validates too."""
    held_out = [i for i in range(count) if i % hold == 0]
    index = sorted(set(range(count)) - set(held_out)) if split == "train" else held_out
    if not index:
        raise UserError(f"{source} has {count} image(s); with --llffhold {hold} the {split} split "
                        "is empty.")
    return index


def find_image(path):
    """The image file of that path, which may lack its ending or have another one; else None."""
    if path.suffix.lower() in image_utils.IMAGE_SUFFIXES:
        if path.is_file():
            return path
        path = path.with_suffix("")
    endings = sorted(image_utils.IMAGE_SUFFIXES)
    found = (Path(f"{path}{e}") for e in (*endings, *map(str.upper, endings)))
    return next((file for file in found if file.is_file()), None)


def png_file(folder, name):
    """The file of a Blender frame, which is named with or without its ending."""
    return folder / (name if name.lower().endswith(".png") else f"{name}.png")


def report_left_out(source, reason, names):
    """One printed line about views of `source` that are not used."""
    if names:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        print(f"{source}: left out {len(names)} {reason}: {listed}", flush=True)


# Above this share of difference an image does not have the size or shape that a file states.
SIZE_TOLERANCE = 0.01


def fits(size, wanted):
    """Whether (width, height) are as wanted, but for rounding."""
    return bool((np.abs(size - wanted) <= np.maximum(1, SIZE_TOLERANCE * wanted)).all())
