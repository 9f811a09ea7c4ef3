"""Download nerf_synthetic and nerf_llff_data, and make the multiscale set from the former.

The work behind the four download_*.sh beside it. Mirrors are tried in turn, a broken download is
resumed, and a scene's folder appears under its name only when it is complete. Standard library
only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import posixpath
import re
import shutil
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONVERTER = ROOT / "scripts" / "convert_blender_data.py"
DATASETS = ("blender", "llff", "multicam", "data")
ATTEMPTS = 4
WAIT_SECONDS = 1.0
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 18
HUGGING_FACE = "https://huggingface.co"
# Answers that often pass by themselves; any other HTTP error sends us to the next mirror at once.
PASSING_ERRORS = (408, 425, 429, 500, 502, 503, 504)
# What the zip reader raises on damaged, encrypted or unsupported archives.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)

HELP = """\
A mirror is the address of a zip file, or the path of one on this machine. "{scene}" in it stands
for the scene's name; "#sha256=HEX" after it has the file checked; "#scenes=lego,ship" says that it
holds only these (both: "#sha256=HEX&scenes=lego"). Wherever the scene lies inside the zip, it is
found by its name and its %(marker)s.

environment variables:
  %(variables)s
                        mirrors to use instead of the built-in ones, separated by spaces
  HF_ENDPOINT           a Hugging Face mirror site, for the built-in mirrors that lie there
  PYTHON                the interpreter to run with (default: python3)
"""


@dataclass(frozen=True)
class SceneSet:
    """A published set: its folder, its scenes, and a file each scene's folder holds directly."""

    folder: str
    scenes: tuple[str, ...]
    marker: str
    mirrors: tuple[str, ...]

    @property
    def variable(self) -> str:
        """Name of the environment variable that replaces the built-in mirrors."""
        return f"{self.folder.upper()}_MIRRORS"


# The example archive of the NeRF authors: lego and fern alone, over plain http because the site's
# certificate did not verify in 2024. Named in pull requests of bmild/nerf (#133) and
# yenchenlin/nerf-pytorch (#34); out of order in 2021 (yenchenlin/nerf-pytorch#46),
# its neighbour in the same folder working again in 2024, hence the last resort.
EXAMPLE = "http://cseweb.ucsd.edu/~viscomp/projects/LF/papers/ECCV20/nerf/nerf_example_data.zip"

# The Google Drive files that older repositories name were deleted in 2024 (bmild/nerf#211
# and #214). None of the addresses below could be tried when this was written; each comment says
# where it was seen. A checksum stands where a public source states one.
BLENDER = SceneSet(
    folder="nerf_synthetic",
    scenes=("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"),
    marker="transforms_train.json",
    mirrors=(
        # One zip a scene (100 to 285 MB). nerfbaselines' own loader names it under its first
        # owner's name, scripts of others since 2025 under the project's.
        f"{HUGGING_FACE}/datasets/nerfbaselines/nerfbaselines-data/resolve/main/blender/{{scene}}.zip",
        f"{HUGGING_FACE}/datasets/jkulhanek/nerfbaselines-data/resolve/main/blender/{{scene}}.zip",
        # The original 1.3 GB file: nerfmirror.py in the repository of that name (2022). The same
        # checksum stands in nerfbaselines' loader (2024) for the authors' file on Google Drive.
        "https://github.com/yxlao/nerfmirror/releases/download/20220618/nerf_synthetic.zip"
        "#sha256=f01fd1b4ab045b0d453917346f26f898657bb5bec4834b95fdad1f361826e45e",
        # "A backup of the original": README and model card of donydchen/matchnerf (after 2023).
        f"{HUGGING_FACE}/donydchen/matchnerf/resolve/main/nerf_synthetic.zip",
        # Uploaded when the Drive file went (kxhit/EscherNet#16); the checksum is that of
        # the commit page of September 2024, which the address is pinned to.
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
        # pins the same commit. Not the bytes of the original, but a copy of the same scenes.
        f"{HUGGING_FACE}/datasets/YouLiXiya/nerf/resolve/"
        "8bb2c1f48e1ee51a94bce0c1634dd04795f92faa/nerf_llff_data.zip"
        "#sha256=b8be42c77ce345e647812cb69d1f92d2a85159f2464847e99458e53d13cb1d96",
        f"{EXAMPLE}#scenes=fern",
    ),
)


class DownloadError(Exception):
    """Something the user must know; its text is one sentence."""


class MirrorError(Exception):
    """This mirror did not work; the next one may."""


class BadArchive(MirrorError):
    """The mirror's file is damaged, or is not to be trusted."""


class Interrupted(Exception):
    """The connection ended early; going on from there may work."""


@dataclass(frozen=True)
class Mirror:
    """One place to get a scene from: an address or a local path, and what is known about it."""

    url: str
    sha256: str | None
    scenes: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        return os.path.isfile(self.url)


def parse_mirror(text: str, scene_set: SceneSet, scene: str) -> Mirror:
    """The mirror that `text` (an address with an optional fragment) is for `scene`."""
    url, _, fragment = text.partition("#")
    facts = urllib.parse.parse_qs(fragment)
    if unknown := set(facts) - {"sha256", "scenes"}:
        raise DownloadError(f"Mirror {text} has {', '.join(unknown)} after '#': see --help.")
    if "{scene}" in url:
        scenes: tuple[str, ...] = (scene,)
    else:
        scenes = tuple(facts["scenes"][0].split(",")) if "scenes" in facts else scene_set.scenes
    sha256 = facts["sha256"][0].lower() if "sha256" in facts else None
    return Mirror(url.replace("{scene}", scene), sha256, scenes)


def mirrors_of(scene_set: SceneSet, scene: str, chosen: list[str]) -> list[Mirror]:
    """The mirrors that hold `scene`: the chosen ones, else the environment's, else our own."""
    endpoint = (os.environ.get("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")
    built_in = [text.replace(HUGGING_FACE, endpoint, 1) for text in scene_set.mirrors]
    texts = chosen or os.environ.get(scene_set.variable, "").split() or built_in
    mirrors = [parse_mirror(text, scene_set, scene) for text in texts]
    return [mirror for mirror in mirrors if scene in mirror.scenes]


def say(text: str) -> None:
    print(text, flush=True)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def check_space(folder: Path, count: int) -> None:
    """Stop before a disk is filled: another mirror would not fit either."""
    free = shutil.disk_usage(folder).free
    if count > free:
        raise DownloadError(
            f"{folder} needs {gigabytes(count)} more but its disk has {gigabytes(free)} free: "
            "make room or choose another place with --data_dir."
        )


def show_progress(name: str, done: int, total: int | None) -> None:
    """Rewrite one line on a terminal; write nothing into logs and pipes."""
    if sys.stderr.isatty():
        part = f"{100 * done / total:5.1f} % of {gigabytes(total)}" if total else gigabytes(done)
        end = "\n" if done == total else ""
        print(f"\r  {name}: {part} ", end=end, file=sys.stderr, flush=True)


def trusted_certificates() -> ssl.SSLContext:
    """The system's certificates, and certifi's: Python on macOS may come without any."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context
    context.load_verify_locations(certifi.where())
    return context


def part_of(archive: Path) -> Path:
    """Where `archive` grows until it is complete."""
    return archive.with_name(archive.name + ".part")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def open_from(url: str, start: int) -> http.client.HTTPResponse:
    """Ask for `url` from byte `start` on."""
    headers = {"User-Agent": "dataset-download"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        context = trusted_certificates()
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise MirrorError(getattr(error.reason, "strerror", None) or error.reason) from error
    except ValueError as error:
        raise MirrorError("neither an address nor a file here") from error
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"no answer, {error or type(error).__name__}") from error


def read_chunk(response: http.client.HTTPResponse) -> bytes:
    """The next bytes, b"" at the end; a network's error never looks like one of the disk."""
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"the connection broke, {error or type(error).__name__}") from error


def copy_body(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    """Write a response's body into `part` from byte `start` on."""
    length = response.headers.get("Content-Length")
    check_space(part.parent, int(length or 0))
    total = start + int(length) if length else None
    done = start
    with open(part, "ab" if start else "wb") as file:
        while chunk := read_chunk(response):
            file.write(chunk)
            done += len(chunk)
            show_progress(part.name, done, total)
    if total is not None and done != total:
        raise Interrupted(f"the connection ended at byte {done} of {total}")


def fetch_rest(url: str, part: Path) -> None:
    """Add to `part` what it lacks of `url`; Interrupted when the connection ends too early."""
    start = size_of(part)
    try:
        response = open_from(url, start)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond our last byte; whether ours are the right ones is checked later.
        return
    with response:
        # A server that knows no ranges answers 200 and sends the file from its beginning.
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise MirrorError("it does not send the range it was asked for")
        copy_body(response, part, start if resumed else 0)


def fetch_all(url: str, part: Path) -> None:
    """Complete `part`, going on after interruptions as long as that brings it forward."""
    failures = 0
    while True:
        before = size_of(part)
        try:
            return fetch_rest(url, part)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code not in PASSING_ERRORS:
                raise MirrorError(reason) from error
        except Interrupted as error:
            reason = str(error)
        failures = 1 if size_of(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise MirrorError(reason)
        time.sleep(WAIT_SECONDS * failures)


def check_sha256(path: Path, wanted: str | None) -> None:
    """Raise BadArchive when a checksum is known and `path` has another."""
    if wanted is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise BadArchive(f"checksum {digest.hexdigest()[:12]}… instead of {wanted[:12]}…")


def fetch(mirror: Mirror, archive: Path) -> None:
    """Download a mirror's archive; under its own name it is complete and its checksum right."""
    part = part_of(archive)
    fetch_all(mirror.url, part)
    try:
        check_sha256(part, mirror.sha256)
    except BadArchive:
        part.unlink()
        raise
    os.replace(part, archive)


def check_safe(info: zipfile.ZipInfo) -> None:
    """Refuse a member that is a link or that could land outside the folder unpacked into."""
    parts = info.filename.replace("\\", "/").split("/")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise BadArchive(f"it holds a link, {info.filename}")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise BadArchive(f"it holds a path that leads outside, {info.filename}")


def is_junk(name: str) -> bool:
    """Whether `name` is what a Mac's Finder adds to a zip."""
    base = posixpath.basename(name)
    return "__MACOSX" in name.split("/") or base.startswith("._") or base == ".DS_Store"


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
    # A zip made for one scene may hold it under another name or none: its address must name it.
    if len(roots) == 1 and folders[roots[0]] not in scene_set.scenes:
        if re.search(rf"\b{scene}\b", url):
            return roots[0]
    raise MirrorError(f"it holds no {scene}/{scene_set.marker}")


def extract(zipped: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    """Write each member under its path in `folder`; reading one to its end checks its CRC."""
    check_space(folder, sum(info.file_size for info in members.values()))
    for name, info in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(info) as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file)


def remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def unpack(archive: Path, url: str, scene_set: SceneSet, scene: str, target: Path) -> None:
    """Put `scene` from a zip at `target`, which exists only once all of it is written."""
    # Beside the target, so that the final rename stays on one disk and cannot be half done.
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
        raise BadArchive(f"not a sound zip file ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def archive_path(work: Path, mirror: Mirror) -> Path:
    """Where a mirror's file is kept: by its address, so that no two mirrors mix their bytes."""
    name = posixpath.basename(urllib.parse.urlsplit(mirror.url).path)
    key = hashlib.sha256(mirror.url.encode()).hexdigest()[:8]
    return work / f"{key}-{re.sub('[^A-Za-z0-9._-]', '_', name)}"


def fetch_and_unpack(
    mirror: Mirror, archive: Path, scene_set: SceneSet, scene: str, target: Path
) -> None:
    """Get `scene` from a mirror, or from its archive where an earlier scene left that."""
    if not archive.exists():
        say(f"{scene}: downloading {mirror.url}")
        fetch(mirror, archive)
    try:
        unpack(archive, mirror.url, scene_set, scene, target)
    except BadArchive:
        archive.unlink()
        raise


def use_mirror(mirror: Mirror, work: Path, scene_set: SceneSet, scene: str, target: Path) -> None:
    """Get `scene` from one mirror, a local zip or an address."""
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
        # What an earlier run left may belong to a file that has changed since.
        fetch_and_unpack(mirror, archive, scene_set, scene, target)


def is_there(target: Path, marker: str) -> bool:
    """Whether `target` is done already; anything else under that name is the user's: an error."""
    if not os.path.lexists(target):
        return False
    if not (target / marker).is_file():
        raise DownloadError(f"{target} is there without {marker}: move it away and run this again.")
    say(f"{target} is there already and was left as it is.")
    return True


def scenes_in(archive: Path) -> set[str]:
    """The names of all folders in a zip, those of its scenes among them."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            return {folder for name in zipped.namelist() for folder in name.split("/")[:-1]}
    except ZIP_ERRORS:
        return set()


def tidy(work: Path, scene_set: SceneSet, mirrors: list[Mirror]) -> None:
    """Delete what a scene's mirrors left, except archives that hold scenes still missing."""
    missing = {scene for scene in scene_set.scenes if not (work.parent / scene).exists()}
    for mirror in mirrors:
        archive = archive_path(work, mirror)
        part_of(archive).unlink(missing_ok=True)
        if archive.exists() and not missing & scenes_in(archive):
            archive.unlink()
    remove_if_empty(work)


def download_scene(scene_set: SceneSet, scene: str, data_dir: Path, chosen: list[str]) -> None:
    """Put one scene at data_dir/folder/scene, from the first mirror that works."""
    target = data_dir / scene_set.folder / scene
    if is_there(target, scene_set.marker):
        return
    work = target.parent / ".download"
    work.mkdir(parents=True, exist_ok=True)
    mirrors = mirrors_of(scene_set, scene, chosen)
    failures = []
    for mirror in sorted(mirrors, key=lambda mirror: not archive_path(work, mirror).exists()):
        try:
            use_mirror(mirror, work, scene_set, scene, target)
        except MirrorError as error:
            say(f"{scene}: {mirror.url} did not work: {error}.")
            failures.append(f"{mirror.url} ({error})")
            continue
        say(f"{scene}: unpacked to {target}")
        return tidy(work, scene_set, mirrors)
    remove_if_empty(work)
    raise DownloadError(
        f"Could not get {scene}, tried {'; '.join(failures) or 'no mirror, for none holds it'}: "
        f"try again later, name another source (a URL or a zip file) in {scene_set.variable}, "
        f"or unpack the scene by hand so that {target / scene_set.marker} exists."
    )


def announce_kept(scene_set: SceneSet, data_dir: Path) -> None:
    """Name the big archives that stay for scenes not asked for yet."""
    for archive in sorted((data_dir / scene_set.folder / ".download").glob("*")):
        if archive.is_file() and archive.suffix != ".part":
            size = gigabytes(archive.stat().st_size)
            say(f"Kept {archive} ({size}) for the other scenes in it; delete it if you want none.")


def converter_python() -> str:
    """An interpreter that has the project's packages: the one that runs, or that of .venv."""
    project = ROOT / ".venv" / "bin" / "python"
    in_environment = sys.prefix != sys.base_prefix
    return str(project) if project.exists() and not in_environment else sys.executable


def make_multiscale(scene: str, data_dir: Path, chosen: list[str]) -> None:
    """Make data_dir/nerf_multiscale/scene from the Blender scene, downloaded first if missing."""
    target = data_dir / "nerf_multiscale" / scene
    if is_there(target, "metadata.json"):
        return
    source = data_dir / BLENDER.folder / scene
    if not source.exists():
        download_scene(BLENDER, scene, data_dir, chosen)
    # As when unpacking: a killed conversion must leave nothing that looks like a scene.
    folder = target.parent / ".download" / scene
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [converter_python(), str(CONVERTER)]
    command += ["--blender_dir", str(source), "--out_dir", str(folder)]
    status = subprocess.run(command, check=False).returncode
    if status or not (folder / "metadata.json").is_file():
        raise DownloadError(
            f"Converting {source} failed (its message is above) with: {' '.join(command)}"
        )
    os.rename(folder, target)
    remove_if_empty(folder.parent)
    say(f"{scene}: multiscale images written to {target}")


def scenes_of(dataset: str) -> tuple[str, ...]:
    """Every scene that a script knows."""
    blender = () if dataset == "llff" else BLENDER.scenes
    return blender + (LLFF.scenes if dataset in ("llff", "data") else ())


def download(dataset: str, wanted: list[str], data_dir: Path, chosen: list[str]) -> None:
    """Get the wanted scenes of a dataset, all when none is named."""
    known = scenes_of(dataset)
    for scene in wanted:
        if scene not in known:
            raise DownloadError(f"There is no scene {scene} here, only {', '.join(known)}.")
    scenes = [scene for scene in known if scene in wanted or not wanted]
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
    facts = {
        "marker": " or ".join(scene_set.marker for scene_set in sets),
        "variables": ", ".join(scene_set.variable for scene_set in sets),
    }
    what = {
        "blender": "Download the Blender scenes to DIR/nerf_synthetic/<scene>.",
        "llff": "Download the forward-facing scenes to DIR/nerf_llff_data/<scene>.",
        "multicam": "Make DIR/nerf_multiscale/<scene> from the Blender scenes, downloaded first.",
        "data": "Download the Blender and forward-facing sets, make the multiscale one.",
    }
    parser = argparse.ArgumentParser(
        prog=f"scripts/download_{dataset}.sh",
        description=f"{what[dataset]} What is there already stays as it is.",
        epilog=HELP % facts,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    scenes = ", ".join(scenes_of(dataset))
    parser.add_argument("scenes", nargs="*", metavar="scene", help=f"default all of: {scenes}")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", metavar="DIR",
                        help="where the sets lie (default: data in the repository)")
    if dataset != "data":
        parser.add_argument("--mirror", action="append", default=[], metavar="URL",
                            help="try this instead of the built-in mirrors; may be repeated")
    return parser


def main(argv: list[str]) -> int:
    """Run one script's command line; every failure is one sentence and status 2."""
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
        print("\nStopped: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
