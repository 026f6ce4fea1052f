"""The archive that the ComfyUI registry gets: pack.py OUT.zip [--repository https://github.com/OWNER/NAME]

Tracked files without those of .comfyignore, as comfy-cli takes them. --repository fills in what only the publisher
knows, the links to repository, icon and banner, in pyproject.toml (the publish workflow does so before it publishes).
"""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IGNORED = (".git", "__pycache__", "build")                # where no git says what is tracked
RAW = "https://raw.githubusercontent.com/{name}/main/docs/images/{picture}"


def main() -> int:
    """Fill in, pack, say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", metavar="OUT.zip")
    parser.add_argument("--repository", metavar="URL")
    args = parser.parse_args()
    if args.repository:
        fill_in(ROOT / "pyproject.toml", args.repository)
    if args.out:
        names = pack(Path(args.out))
        print(f"{args.out}: {len(names)} files, {Path(args.out).stat().st_size} bytes")
    return 0


def pack(target: Path) -> list[str]:
    """Write the archive -> names of its files. Time stamps are fixed: the same tree gives the same archive."""
    names = published()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), (ROOT / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return names


def published() -> list[str]:
    """Names of the files that are published, sorted."""
    patterns = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    odd = [pattern for pattern in patterns if set(pattern.rstrip("/")) & set("*?[!/#")]
    if odd:
        raise SystemExit(f".comfyignore: expected plain names of files and folders, got {', '.join(odd)}")
    return sorted(name for name in tracked() if not any(ignored(name, pattern) for pattern in patterns))


def ignored(name: str, pattern: str) -> bool:
    """Whether a plain pattern of .comfyignore leaves a file out: a name anywhere in its path, "name/" of a folder."""
    *folders, last = name.split("/")
    return pattern.rstrip("/") in folders or pattern == last


def tracked() -> list[str]:
    """Files under version control, or all where there is none."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
        names = [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        names = []
    return names or [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()
                     and not set(IGNORED) & set(path.relative_to(ROOT).parts)]


def fill_in(pyproject: Path, repository: str) -> None:
    """Set the links to repository, icon and banner; SystemExit where the address is not one of GitHub."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository)
    if not match:
        raise SystemExit(f"expected https://github.com/OWNER/NAME, got '{repository}'")
    name, text = match[1], pyproject.read_text(encoding="utf-8")
    links = "".join(f'{what} = "https://github.com/{name}{end}"\n' for what, end in (
        ("Repository", ""), ("Documentation", "/tree/main/docs"), ('"Bug Tracker"', "/issues")))
    for key, picture in (("Icon", "icon.png"), ("Banner", "banner.png")):
        text = re.sub(rf'^{key} = ""$', f'{key} = "{RAW.format(name=name, picture=picture)}"', text, flags=re.M)
    text = text.replace("[tool.comfy]\n", f"[project.urls]\n{links}\n[tool.comfy]\n", 1)
    pyproject.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
