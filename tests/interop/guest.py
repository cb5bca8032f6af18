"""A guest under QEMU with Debian's stock kernel: an independent peer for what this kernel lacks.

No disk and no ssh: the guest's whole file system is an initramfs of busybox, iproute2 and the wanted
modules, its init is the test's script, its console is a pipe. Emulated (TCG), so it runs anywhere.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/guest"
PROGRAMS = ("ip", "ping", "bash", "wg")
NEEDED = ("qemu-system-x86_64", "busybox", "cpio", "depmod", "modprobe", "apt-get", "dpkg", *PROGRAMS)
BOOT_LIMIT = 60.0

INIT = """#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
ip link set lo up
/bin/bash /test.sh
poweroff -f
"""


def missing() -> str:
    """Return what this machine lacks to run a guest, or nothing."""
    absent = [name for name in NEEDED if not shutil.which(name)]
    if os.geteuid() != 0:
        absent.append("root")
    return ", ".join(absent)


def kernel() -> Path:
    """Return the unpacked image of Debian's current kernel, fetched once."""
    image = CACHE / "image"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        depends = _run("apt-cache", "depends", "linux-image-amd64")
        name = re.findall(r"Depends: (linux-image-\S+)", depends)[0]
        _run("apt-get", "download", "-qq", name, cwd=CACHE)
        (package,) = CACHE.glob("linux-image-*.deb")
        _run("dpkg", "-x", str(package), str(CACHE / "unpacking"))
        package.unlink()
        (CACHE / "unpacking").rename(image)
        _run("depmod", "-b", str(image), _version(image))
    return image


def initramfs(image: Path, modules: Sequence[str], script: str, scratch: Path) -> Path:
    """Return an archive that boots, loads nothing by itself, and runs the script."""
    root = scratch / "root"
    for folder in ("bin", "sbin", "proc", "sys", "dev", "run", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "test.sh").write_text(script)
    _add_busybox(root)
    for program in PROGRAMS:
        _add_program(root, program)
    _add_modules(root, image, modules)
    archive = scratch / "initramfs"
    with archive.open("wb") as out:
        listed = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        pack = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(pack, cwd=root, input=listed, stdout=out, check=True)
    return archive


@contextlib.contextmanager
def guest(
    enter: Sequence[str], tap: str, modules: Sequence[str], script: str, scratch: Path
) -> Iterator[Path]:
    """Boot a guest whose eth0 is at the other end of a tap device; yield its console's log.

    Args:
        enter: the command that runs others in the network that has the tap.
        tap: the device's name.
        modules: kernel modules that the script may load.
        script: what the guest runs; it prints READY when the host may go on.
        scratch: an empty folder.

    Raises:
        TimeoutError: the guest did not get ready; with the end of its console.

    """
    image = kernel()
    archive = initramfs(image, ["virtio_pci", "virtio_net", *modules], script, scratch)
    console = scratch / "console.log"
    command = [*enter, "qemu-system-x86_64"]
    command += ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512"]
    command += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
    command += ["-kernel", str(next(image.glob("boot/vmlinuz-*"))), "-initrd", str(archive)]
    command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    command += ["-netdev", f"tap,id=n0,ifname={tap},script=no,downscript=no"]
    command += ["-device", "virtio-net-pci,netdev=n0"]
    with console.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        _wait_for(console, "READY", process)
        yield console
    finally:
        process.kill()
        process.wait()


def _wait_for(console: Path, word: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT_LIMIT
    while word not in console.read_text(errors="replace"):
        if time.monotonic() > deadline or process.poll() is not None:
            raise TimeoutError(
                f"the guest did not print {word}:\n{console.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.1)


def _add_busybox(root: Path) -> None:
    shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
    for applet in _run("busybox", "--list").split():
        if applet not in ("busybox", *PROGRAMS):
            (root / "bin" / applet).symlink_to("busybox")


def _add_program(root: Path, program: str) -> None:
    path = str(shutil.which(program))
    shutil.copy(path, root / "bin" / program)
    for library in re.findall(r"(/\S+)", _run("ldd", path)):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def _add_modules(root: Path, image: Path, modules: Sequence[str]) -> None:
    version = _version(image)
    for module in modules:
        shown = _run("modprobe", "-d", str(image), "-S", version, "--show-depends", module)
        for file in re.findall(r"insmod (\S+)", shown):
            target = root / Path(file).relative_to(image)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    _run("depmod", "-b", str(root), version)


def _version(image: Path) -> str:
    (version,) = (image / "lib/modules").iterdir()
    return version.name


def _run(*command: str, cwd: Path | None = None) -> str:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    done = subprocess.run(
        command,
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": path},
    )
    return done.stdout
