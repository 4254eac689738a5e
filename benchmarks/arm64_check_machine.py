"""A small Debian for arm64 with Python, numpy and ai-edge-litert, run by QEMU: where arm64_check.py runs files."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BUILD = Path(__file__).parent.parent / "build" / "arm64"
PROGRAM = Path(__file__).with_name("arm64_check_run.py")
EMULATOR = "qemu-aarch64-static"
TOOLS = {EMULATOR: "qemu-user-static", "debootstrap": "debootstrap", "apt-get": "apt", "dpkg-deb": "dpkg"}
"""Commands -> the packages of Debian that hold them."""
WHEELS = ("ai-edge-litert", "numpy")
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)]
CORE = "cortex-a76"
"""What is emulated: the cores of a Raspberry Pi 5."""
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PROCESSOR = {
    "proc/cpuinfo": f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {FEATURES}\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n",
    **{f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")},
}


class Skipped(Exception):
    """Say why there is nothing to run on."""


def ran(command: Sequence[str | Path], why: str) -> str:
    """Run a command and give what it prints; skip when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise Skipped(f"{why}: {said[-1] if said else f'it ended with {done.returncode}'}")
    return done.stdout


def check_tools() -> None:
    """Skip unless this can change the root folder and has the tools."""
    if os.geteuid():
        raise Skipped("it needs root, to change the root folder")
    missing = sorted({package for command, package in TOOLS.items() if shutil.which(command) is None})
    if missing:
        raise Skipped(f"it needs Debian's packages {', '.join(missing)}")


def mirror() -> tuple[str, str]:
    """Read address and suite of the first source of Debian's main packages from the machine's own configuration."""
    layout = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)"
    listed = ran(["apt-get", "indextargets", "--format", layout, "Created-By: Packages"], "apt-get lists no sources")
    for line in listed.splitlines():
        origin, label, component, suite, address = line.split("|")
        if (origin, label, component) == ("Debian", "Debian", "main") and "-" not in suite:
            return address, suite
    raise Skipped("apt has no source of Debian's main packages; `apt-get update` reads what there is")


def unpack(package: Path, root: Path) -> None:
    """Unpack a Debian package; links to folders stay, so /lib remains a part of /usr."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as files:
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", root], stdin=files.stdout, check=True)


def describe_processor(root: Path) -> None:
    """Write what the runtime reads of a processor; without it, it takes its slow kernels instead of XNNPACK's."""
    if (root / "proc").is_symlink():  # debootstrap may make it one to this machine's
        (root / "proc").unlink()
    for name, text in PROCESSOR.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def prepare() -> Path:
    """Unpack a Debian for arm64 with Python, unless it is there; give its folder."""
    root = BUILD / "root"
    if root.exists():
        return root
    part = BUILD / "root.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    address, suite = mirror()
    print(f"unpacking Debian {suite} for arm64 into {root} ...", flush=True)
    wanted = "--include=python3-minimal,libpython3-stdlib"
    command = ["debootstrap", "--foreign", "--variant=minbase", "--arch=arm64", wanted, suite, part, address]
    ran(command, "debootstrap failed")
    for package in sorted((part / "var/cache/apt/archives").glob("*.deb")):
        unpack(package, part)
    shutil.copy(str(shutil.which(EMULATOR)), part / "usr" / "bin")
    describe_processor(part)
    part.rename(root)
    return root


def python_of(root: Path) -> str:
    """Name the Python there, such as "3.11"."""
    found = sorted((root / "usr/bin").glob("python3.[0-9]*[0-9]"))
    if not found:
        raise Skipped(f"{root} has no Python; remove {BUILD} and try again")
    return found[0].name.removeprefix("python")


def install(root: Path) -> None:
    """Unpack the wheels for arm64, in the versions installed here."""
    versions = {name: importlib.metadata.version(name) for name in WHEELS}
    stamp, said = root / "check" / "versions.json", json.dumps(versions)
    if stamp.exists() and stamp.read_text() == said:
        return
    shutil.rmtree(root / "check", ignore_errors=True)
    wheels = BUILD / "wheels"
    platforms = [part for one in PLATFORMS for part in ("--platform", one)]
    asked = [f"{name}=={version}" for name, version in versions.items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    target = ["--implementation", "cp", "--python-version", python_of(root), "--dest", wheels]
    print(f"fetching {' and '.join(asked)} for arm64 ...", flush=True)
    shutil.rmtree(wheels, ignore_errors=True)
    ran([*command, *target, *asked], "pip could not fetch the wheels for arm64")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(root / "check" / "site")
    stamp.write_text(said)


def run_there(root: Path, jobs: Sequence[tuple[Path, Sequence[np.ndarray]]]) -> list[tuple[str, list[np.ndarray]]]:
    """Run files under emulation: for each a path and the inputs as it takes them.

    Returns:
        For each, whose kernels ran, and its outputs as it gives them.
    """
    files = root / "check" / "files"
    shutil.rmtree(files, ignore_errors=True)
    names = []
    for number, (path, inputs) in enumerate(jobs):
        folder = files / f"{number}"
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "model.tflite")
        np.savez(folder / "inputs.npz", *inputs)
        names.append(f"/check/files/{number}")
    shutil.copy(PROGRAM, root / "check" / "run.py")
    emulator = ["chroot", root, f"/usr/bin/{EMULATOR}", "-cpu", CORE, "-E", "PYTHONPATH=/check/site"]
    python = [*emulator, f"/usr/bin/python{python_of(root)}"]
    said = subprocess.run(
        [str(part) for part in [*python, "/check/run.py", *names]], capture_output=True, text=True, check=False
    )
    ran_by = [line.split() for line in said.stdout.splitlines()]
    if said.returncode or [machine for machine, _ in ran_by] != ["aarch64"] * len(jobs):
        raise RuntimeError(f"arm64's Python ended with {said.returncode}: {said.stderr.strip()[-2000:]}")
    outputs = []
    for number in range(len(jobs)):
        with np.load(files / f"{number}" / "outputs.npz") as stored:
            outputs.append((ran_by[number][1], [stored[f"arr_{place}"] for place in range(len(stored.files))]))
    return outputs
