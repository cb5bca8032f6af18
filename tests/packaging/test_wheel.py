"""What gets installed is what is in the tree: nothing lost through the links, nothing extra."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from overmesh import __version__

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


@pytest.fixture(scope="module")
def fastpath_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fastpath")
    maturin = [str(Path(sys.executable).parent / "maturin"), "build", "--release", "--locked"]
    manifest = ["--manifest-path", str(ROOT / "fastpath/daemon/Cargo.toml")]
    subprocess.run([*maturin, *manifest, "--out", str(out)], check=True, capture_output=True, timeout=600)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, fastpath_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a venv that holds nothing but what our wheels ask for."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip"]
    locked = ["--require-hashes", "-r", str(ROOT / "requirements/runtime.txt")]
    subprocess.run([*pip, "install", "--quiet", *locked], check=True, timeout=300)
    ours = ["--no-deps", str(wheel), str(fastpath_wheel)]
    subprocess.run([*pip, "install", "--quiet", *ours], check=True, timeout=60)
    subprocess.run([*pip, "check"], check=True, timeout=60)
    return folder / "bin"


def output(*command: str | Path) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        command, cwd="/", env=environ, check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.mark.timeout(900)
def test_an_empty_venv_gets_a_working_meshctl(installed: Path) -> None:
    assert "Usage: meshctl" in output(installed / "meshctl", "--help")
    assert __version__ in output(installed / "meshctl", "version")


def test_an_empty_venv_gets_the_fastpath_where_the_agent_looks(installed: Path) -> None:
    assert output(installed / "overmesh-fastpath", "--version").split() == ["overmesh-fastpath", __version__]
    look = "from overmesh.agent.fastpath import find_binary; print(find_binary(''))"
    assert output(installed / "python", "-c", look).strip() == str(installed / "overmesh-fastpath")


def test_an_empty_venv_gets_the_systemd_unit(installed: Path) -> None:
    look = "from overmesh.cli.systemd import unit; from pathlib import Path; print(unit(Path('/x/meshctl')))"
    assert "ExecStart=/x/meshctl agent run" in output(installed / "python", "-c", look)


def test_versions_agree() -> None:
    for file in ("pyproject.toml", "fastpath/pyproject.toml", "fastpath/Cargo.toml"):
        assert f'\nversion = "{__version__}"\n' in (ROOT / file).read_text(), file
    assert f"overmesh-fastpath=={__version__}" in (ROOT / "pyproject.toml").read_text()
