"""What gets installed is what is in the tree: nothing lost through the links, nothing extra."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("overmesh", "controller", "agent", "proto")


def build(kind: str, source: Path, out: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        f"--{kind}",
        "--outdir",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def tracked() -> set[str]:
    """Return the package's files as git knows them, under the names that they get when installed."""
    listed = subprocess.run(["git", "ls-files", *PARTS], cwd=ROOT, check=True, capture_output=True, text=True)
    files = {file for file in listed.stdout.splitlines() if not (ROOT / file).is_symlink()}
    return {file if file.startswith("overmesh/") else f"overmesh/{file}" for file in files}


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    assert set(content(wheel)) == tracked()


def test_the_sdist_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert content(build("wheel", source, tmp_path / "out")) == content(wheel)


def test_an_empty_venv_gets_a_working_meshctl(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [
        str(tmp_path / "venv/bin/python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    locked = ["--require-hashes", "-r", str(ROOT / "requirements/runtime.txt")]
    subprocess.run([*pip, *locked], check=True, timeout=110)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, timeout=60)
    subprocess.run([*pip[:3], "check"], check=True, timeout=60)
    for arguments in (["--help"], ["version"]):
        done = subprocess.run(
            [tmp_path / "venv/bin/meshctl", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ""},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "meshctl" in done.stdout


def test_versions_agree() -> None:
    from overmesh import __version__  # the installed one

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f'version = "{__version__}"' in (ROOT / "fastpath/Cargo.toml").read_text()
