"""Imports go one way: model <- proto <- controller, agent <- cli."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each part may import of overmesh, by the first name after `overmesh.`.
FOUNDATION = {
    "",
    "config",
    "errors",
    "files",
    "log",
    "metrics",
    "model",
    "rpc",
    "succession",
    "token",
    "trace",
    "wgquick",
}
ALLOWED = {
    "proto": FOUNDATION | {"proto"},
    "controller": FOUNDATION | {"proto", "controller"},
    "agent": FOUNDATION | {"proto", "agent"},
    "overmesh/cli": FOUNDATION | {"proto", "controller", "agent", "cli"},
}


def imports(file: Path) -> set[str]:
    """Return the modules that a file imports, at the top or anywhere inside."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            found |= {
                f"{node.module}.{alias.name}" if node.module == "overmesh" else str(node.module)
                for alias in node.names
            }
    return found


def files(part: str) -> list[Path]:
    found = [file for file in (ROOT / part).rglob("*.py") if "_pb2" not in file.name]
    assert found, f"{part} has no files"
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_stands_below_it(part: str) -> None:
    for file in files(part):
        for module in imports(file):
            if module.split(".")[0] == "overmesh":
                below = module.partition(".")[2].split(".")[0]
                assert below in ALLOWED[part] or below.startswith("__"), f"{file}: imports {module}"


@pytest.mark.parametrize(
    "name", ["model", "errors", "config", "files", "token", "log", "metrics", "trace", "wgquick"]
)
def test_the_foundation_stands_on_nothing_but_itself(name: str) -> None:
    below = FOUNDATION - {"rpc"}
    for module in imports(ROOT / "overmesh" / f"{name}.py"):
        if module.startswith("overmesh."):
            assert module.split(".")[1] in below


def test_only_the_netlink_module_knows_pyroute2() -> None:
    for part in ALLOWED:
        for file in files(part):
            if file != ROOT / "agent" / "netlink.py":
                assert not any(module.split(".")[0] == "pyroute2" for module in imports(file)), file


def test_the_pure_modules_have_no_io() -> None:
    banned = {"asyncio", "grpc", "os", "socket", "time", "subprocess", "pathlib"}
    for name in (
        "controller/addressing.py",
        "controller/peermap.py",
        "agent/desired.py",
        "agent/plan.py",
        "agent/peermap.py",
        "overmesh/model.py",
        "overmesh/wgquick.py",
    ):
        assert not banned & {module.split(".")[0] for module in imports(ROOT / name)}
