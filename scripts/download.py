"""Download nerf_synthetic and nerf_llff_data, and make the multiscale set from the former.

Called by the four download_*.sh scripts. Mirrors are tried in order, broken downloads are resumed,
and a scene's folder gets its name only when it is complete. Standard library only, so that it runs
before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import sys
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.archives import (  # noqa: E402
    ZIP_ERRORS,
    BadArchive,
    DownloadError,
    MirrorError,
    check_safe,
    check_sha256,
    extract,
    fetch,
    gigabytes,
    is_junk,
    part_of,
)

CONVERTER = ROOT / "scripts" / "convert_blender_data.py"
DATASETS = ("blender", "llff", "multicam", "data")
HUGGING_FACE = "https://huggingface.co"

HELP = """\
A mirror is the address of a zip file, or the path of a local one. "{scene}" in it stands for the
scene's name; "#sha256=HEX" after it gives the checksum; "#scenes=lego,ship" lists the scenes that
it holds, if not all (both: "#sha256=HEX&scenes=lego"). The scene may be anywhere inside the zip: it
is found by its name and its %(marker)s.

environment variables:
  %(variables)s
                        mirrors to use instead of the built-in ones, separated by spaces
  HF_ENDPOINT           a mirror of Hugging Face, for the built-in mirrors there
  PYTHON                the Python interpreter (default: python3)
"""


@dataclass(frozen=True)
class SceneSet:
    """A published set: its folder, its scenes, and a marker file that each scene's folder holds."""

    folder: str
    scenes: tuple[str, ...]
    marker: str
    mirrors: tuple[str, ...]

    @property
    def variable(self) -> str:
        """The environment variable that overrides the built-in mirrors."""
        return f"{self.folder.upper()}_MIRRORS"


# The example archive of the NeRF authors with only lego and fern, over plain http because the
# site's certificate did not verify in 2024. Named in pull requests of bmild/nerf (#133) and
# yenchenlin/nerf-pytorch (#34). It was offline in 2021 (yenchenlin/nerf-pytorch#46), while another
# file of its folder was online in 2024; hence the last resort.
EXAMPLE = "http://cseweb.ucsd.edu/~viscomp/projects/LF/papers/ECCV20/nerf/nerf_example_data.zip"

# The Google Drive files that older repositories name were deleted in 2024 (bmild/nerf#211, #214).
# None of the addresses below could be tried when this was written; each comment gives its source. A
# checksum is given if a public source states one.
BLENDER = SceneSet(
    folder="nerf_synthetic",
    scenes=("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"),
    marker="transforms_train.json",
    mirrors=(
        # One zip per scene (100 to 285 MB). nerfbaselines' own loader uses its first owner's name,
        # other scripts since 2025 the project's.
        f"{HUGGING_FACE}/datasets/nerfbaselines/nerfbaselines-data/resolve/main/blender/{{scene}}.zip",
        f"{HUGGING_FACE}/datasets/jkulhanek/nerfbaselines-data/resolve/main/blender/{{scene}}.zip",
        # The original 1.3 GB file: nerfmirror.py in the repository of that name (2022). The same
        # checksum is in nerfbaselines' loader (2024) for the authors' file on Google Drive.
        "https://github.com/yxlao/nerfmirror/releases/download/20220618/nerf_synthetic.zip"
        "#sha256=f01fd1b4ab045b0d453917346f26f898657bb5bec4834b95fdad1f361826e45e",
        # "A backup of the original": README and model card of donydchen/matchnerf (after 2023).
        f"{HUGGING_FACE}/donydchen/matchnerf/resolve/main/nerf_synthetic.zip",
        # Uploaded when the Drive file was deleted (kxhit/EscherNet#16); pinned to the commit of
        # September 2024, whose page gives the checksum.
        f"{HUGGING_FACE}/datasets/kxic/EscherNet-Dataset/resolve/"
        "95cf734c0c3c892a8bc478a6837e5340c4996ca8/nerf_synthetic.zip"
        "#sha256=198495af00e9b9a50f20d4faa6b78cc0f3d1d13b3c34d100fb26ea513d40aaa0",
        f"{EXAMPLE}#scenes=lego",
    ),
)
LLFF = SceneSet(
    folder="nerf_llff_data",
    scenes=("fern", "flower", "fortress", "horns", "leaves", "orchids", "room", "trex"),
    marker="poses_bounds.npy",
    mirrors=(
        # As for nerf_synthetic: nerfmirror.py (2022), the checksum also in nerfbaselines (2025).
        "https://github.com/yxlao/nerfmirror/releases/download/20220618/nerf_llff_data.zip"
        "#sha256=5794b432feaf4f25bcd603addc6ad0270cec588fed6a364b7952001f07466635",
        f"{HUGGING_FACE}/donydchen/matchnerf/resolve/main/nerf_llff_data.zip",
        # Size and checksum from its file page (2023) and from a benchmark's script of 2026 that
        # pins the same commit. Other bytes than the original, but the same scenes.
        f"{HUGGING_FACE}/datasets/YouLiXiya/nerf/resolve/"
        "8bb2c1f48e1ee51a94bce0c1634dd04795f92faa/nerf_llff_data.zip"
        "#sha256=b8be42c77ce345e647812cb69d1f92d2a85159f2464847e99458e53d13cb1d96",
        f"{EXAMPLE}#scenes=fern",
    ),
)


# Mirrors.


@dataclass(frozen=True)
class Mirror:
    """A source of scenes: an address or local path, its checksum if known, and its scenes."""

    url: str
    sha256: str | None
    scenes: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Whether it is a file on this machine."""
        return os.path.isfile(self.url)


def parse_mirror(text: str, scene_set: SceneSet, scene: str) -> Mirror:
    """The mirror that `text`, an address with an optional fragment, describes for `scene`."""
    url, _, fragment = text.partition("#")
    options = urllib.parse.parse_qs(fragment)
    if unknown := set(options) - {"sha256", "scenes"}:
        raise DownloadError(f"Mirror {text} has {', '.join(unknown)} after '#': see --help.")
    if "{scene}" in url:
        scenes: tuple[str, ...] = (scene,)
    else:
        scenes = tuple(options["scenes"][0].split(",")) if "scenes" in options else scene_set.scenes
    sha256 = options["sha256"][0].lower() if "sha256" in options else None
    return Mirror(url.replace("{scene}", scene), sha256, scenes)


def mirrors_of(scene_set: SceneSet, scene: str, chosen: list[str]) -> list[Mirror]:
    """The mirrors of `scene`: the chosen ones, else the environment's, else the built-in ones."""
    endpoint = (os.environ.get("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")
    built_in = [text.replace(HUGGING_FACE, endpoint, 1) for text in scene_set.mirrors]
    texts = chosen or os.environ.get(scene_set.variable, "").split() or built_in
    mirrors = [parse_mirror(text, scene_set, scene) for text in texts]
    return [mirror for mirror in mirrors if scene in mirror.scenes]


def log(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


# A scene from a mirror.


def scene_root(names: list[str], url: str, scene_set: SceneSet, scene: str) -> str:
    """The folder of `scene` among a zip's file names: "" or something that ends with "/"."""
    roots = [
        name[: -len(scene_set.marker)]
        for name in names
        if posixpath.basename(name) == scene_set.marker
    ]
    folders = {root: posixpath.basename(root.rstrip("/")) for root in roots}
    named = [root for root in roots if folders[root] == scene]
    if named:
        return min(named, key=len)
    # A zip of a single scene may hold it under another name or none; its address must name it.
    if len(roots) == 1 and folders[roots[0]] not in scene_set.scenes:
        if re.search(rf"\b{scene}\b", url):
            return roots[0]
    raise MirrorError(f"it holds no {scene}/{scene_set.marker}")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    if not any(folder.iterdir()):
        folder.rmdir()


def unpack(archive: Path, url: str, scene_set: SceneSet, scene: str, target: Path) -> None:
    """Unpack `scene` from a zip to `target`, which exists only once it is complete."""
    # In the target's parent folder, so that the final rename is atomic.
    folder = target.parent / ".download" / scene
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                check_safe(info)
            files = [i for i in zipped.infolist() if not (i.is_dir() or is_junk(i.filename))]
            root = scene_root([info.filename for info in files], url, scene_set, scene)
            inside = [info for info in files if info.filename.startswith(root)]
            extract(zipped, {info.filename[len(root) :]: info for info in inside}, folder)
        os.rename(folder, target)
    except ZIP_ERRORS as error:
        raise BadArchive(f"not a valid zip file ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def archive_path(work: Path, mirror: Mirror) -> Path:
    """The local file of a mirror's archive; distinct for each address."""
    name = posixpath.basename(urllib.parse.urlsplit(mirror.url).path)
    key = hashlib.sha256(mirror.url.encode()).hexdigest()[:8]
    return work / f"{key}-{re.sub('[^A-Za-z0-9._-]', '_', name)}"


def fetch_and_unpack(
    mirror: Mirror, archive: Path, scene_set: SceneSet, scene: str, target: Path
) -> None:
    """Get `scene` from a mirror, or from its archive if an earlier scene left it."""
    if not archive.exists():
        log(f"{scene}: downloading {mirror.url}")
        fetch(mirror.url, mirror.sha256, archive)
    try:
        unpack(archive, mirror.url, scene_set, scene, target)
    except BadArchive:
        archive.unlink()
        raise


def use_mirror(mirror: Mirror, work: Path, scene_set: SceneSet, scene: str, target: Path) -> None:
    """Get `scene` from one mirror, local or remote."""
    if mirror.is_local:
        check_sha256(Path(mirror.url), mirror.sha256)
        return unpack(Path(mirror.url), mirror.url, scene_set, scene, target)
    archive = archive_path(work, mirror)
    leftover = archive.exists() or part_of(archive).exists()
    try:
        fetch_and_unpack(mirror, archive, scene_set, scene, target)
    except BadArchive:
        if not leftover:
            raise
        # The leftover of an earlier run may be of a file that has changed since.
        fetch_and_unpack(mirror, archive, scene_set, scene, target)


# Scenes.


def is_complete(target: Path, marker: str) -> bool:
    """Whether `target` is a complete scene. Raises DownloadError if it is anything else."""
    if not os.path.lexists(target):
        return False
    if not (target / marker).is_file():
        raise DownloadError(f"{target} exists without {marker}: move it away and run this again.")
    log(f"{target} exists already and was not changed.")
    return True


def scenes_in(archive: Path) -> set[str]:
    """The names of all folders in a zip, which include those of its scenes."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            return {folder for name in zipped.namelist() for folder in name.split("/")[:-1]}
    except ZIP_ERRORS:
        return set()


def clean_up(work: Path, scene_set: SceneSet, mirrors: list[Mirror]) -> None:
    """Delete the archives of a scene's mirrors, except those that hold missing scenes."""
    missing = {scene for scene in scene_set.scenes if not (work.parent / scene).exists()}
    for mirror in mirrors:
        archive = archive_path(work, mirror)
        part_of(archive).unlink(missing_ok=True)
        if archive.exists() and not missing & scenes_in(archive):
            archive.unlink()
    remove_if_empty(work)


def download_scene(scene_set: SceneSet, scene: str, data_dir: Path, chosen: list[str]) -> None:
    """Download one scene to data_dir/folder/scene, from the first mirror that works."""
    target = data_dir / scene_set.folder / scene
    if is_complete(target, scene_set.marker):
        return
    work = target.parent / ".download"
    work.mkdir(parents=True, exist_ok=True)
    mirrors = mirrors_of(scene_set, scene, chosen)
    failures = []
    for mirror in sorted(mirrors, key=lambda mirror: not archive_path(work, mirror).exists()):
        try:
            use_mirror(mirror, work, scene_set, scene, target)
        except MirrorError as error:
            log(f"{scene}: {mirror.url} failed: {error}.")
            failures.append(f"{mirror.url} ({error})")
            continue
        log(f"{scene}: unpacked to {target}")
        return clean_up(work, scene_set, mirrors)
    remove_if_empty(work)
    raise DownloadError(
        f"Could not get {scene}, tried {'; '.join(failures) or 'no mirror, as none holds it'}: "
        f"try again later, name another source (a URL or a zip file) in {scene_set.variable}, "
        f"or unpack the scene by hand so that {target / scene_set.marker} exists."
    )


def announce_kept(scene_set: SceneSet, data_dir: Path) -> None:
    """Print which archives are kept because they hold further scenes."""
    for archive in sorted((data_dir / scene_set.folder / ".download").glob("*")):
        if archive.is_file() and archive.suffix != ".part":
            size = gigabytes(archive.stat().st_size)
            log(f"Kept {archive} ({size}) for the other scenes in it; delete it if not needed.")


def converter_python() -> str:
    """An interpreter with the project's packages: the running one, or that of .venv."""
    project = ROOT / ".venv" / "bin" / "python"
    in_environment = sys.prefix != sys.base_prefix
    return str(project) if project.exists() and not in_environment else sys.executable


def make_multiscale(scene: str, data_dir: Path, chosen: list[str]) -> None:
    """Make data_dir/nerf_multiscale/scene from the Blender scene, downloaded if missing."""
    target = data_dir / "nerf_multiscale" / scene
    if is_complete(target, "metadata.json"):
        return
    source = data_dir / BLENDER.folder / scene
    if not source.exists():
        download_scene(BLENDER, scene, data_dir, chosen)
    # As in `unpack`: a killed conversion must not leave a folder that looks like a scene.
    folder = target.parent / ".download" / scene
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [converter_python(), str(CONVERTER)]
    command += ["--blender_dir", str(source), "--out_dir", str(folder)]
    status = subprocess.run(command, check=False).returncode
    if status or not (folder / "metadata.json").is_file():
        raise DownloadError(
            f"Converting {source} failed (see above) with: {' '.join(command)}"
        )
    os.rename(folder, target)
    remove_if_empty(folder.parent)
    log(f"{scene}: multiscale images written to {target}")


# The command line.


def scenes_of(dataset: str) -> tuple[str, ...]:
    """All scenes of a dataset."""
    blender = () if dataset == "llff" else BLENDER.scenes
    return blender + (LLFF.scenes if dataset in ("llff", "data") else ())


def download(dataset: str, names: list[str], data_dir: Path, chosen: list[str]) -> None:
    """Get the named scenes of a dataset, or all if none is named."""
    known = scenes_of(dataset)
    for scene in names:
        if scene not in known:
            raise DownloadError(f"There is no scene {scene}, only {', '.join(known)}.")
    scenes = [scene for scene in known if scene in names or not names]
    blender = [scene for scene in scenes if scene in BLENDER.scenes]
    if dataset in ("blender", "data"):
        for scene in blender:
            download_scene(BLENDER, scene, data_dir, chosen)
    if dataset in ("llff", "data"):
        for scene in scenes:
            if scene in LLFF.scenes:
                download_scene(LLFF, scene, data_dir, chosen)
    if dataset in ("multicam", "data"):
        for scene in blender:
            make_multiscale(scene, data_dir, chosen)
    for scene_set in (BLENDER, LLFF):
        announce_kept(scene_set, data_dir)


def build_parser(dataset: str) -> argparse.ArgumentParser:
    """The command line of scripts/download_<dataset>.sh."""
    sets = {"llff": (LLFF,), "data": (BLENDER, LLFF)}.get(dataset, (BLENDER,))
    help_values = {
        "marker": " or ".join(scene_set.marker for scene_set in sets),
        "variables": ", ".join(scene_set.variable for scene_set in sets),
    }
    descriptions = {
        "blender": "Download the Blender scenes to DIR/nerf_synthetic/<scene>.",
        "llff": "Download the forward-facing scenes to DIR/nerf_llff_data/<scene>.",
        "multicam": "Download the Blender scenes and make DIR/nerf_multiscale/<scene> of them.",
        "data": "Download the Blender and forward-facing sets, make the multiscale one.",
    }
    parser = argparse.ArgumentParser(
        prog=f"scripts/download_{dataset}.sh",
        description=f"{descriptions[dataset]} Existing scenes are not changed.",
        epilog=HELP % help_values,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    scenes = ", ".join(scenes_of(dataset))
    parser.add_argument("scenes", nargs="*", metavar="scene", help=f"default all of: {scenes}")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", metavar="DIR",
                        help="folder of the sets (default: data in the repository)")
    if dataset != "data":
        parser.add_argument("--mirror", action="append", default=[], metavar="URL",
                            help="use this instead of the built-in mirrors; may be repeated")
    return parser


def main(argv: list[str]) -> int:
    """Run the command line of one script. Errors are one sentence and status 2."""
    if not argv or argv[0] not in DATASETS:
        print(f"usage: download.py {{{','.join(DATASETS)}}} [--help]", file=sys.stderr)
        return 2
    args = build_parser(argv[0]).parse_args(argv[1:])
    try:
        download(argv[0], args.scenes, args.data_dir, getattr(args, "mirror", []))
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Cannot write under {args.data_dir}: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command resumes.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
