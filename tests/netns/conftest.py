"""Labs for the tests: shared by the tests of a module, their logs shown when one fails."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.netns.lab import FASTPATH_DIR, Lab, missing
from tests.netns.mesh import Mesh


@pytest.fixture(scope="session")
def able() -> None:
    """Skip, with the reason, where no lab can be made."""
    if why_not := missing():
        pytest.skip(why_not)
    if not (FASTPATH_DIR / "overmesh-fastpath").exists():
        pytest.skip("the fastpath is not built: cargo build --release in fastpath/")


@pytest.fixture(scope="module")
def mesh(able: None, request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """A controller, on a host of its own; tests add hosts and let them join.

    Sealed, unless a test asks for "plain" as an indirect parameter.
    """
    with Lab("ctl") as lab:
        yield Mesh(lab, getattr(request, "param", "sealed"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the ends of all logs to the report of a test that failed."""
    report = yield
    mesh = getattr(item, "funcargs", {}).get("mesh")
    if report.failed and isinstance(mesh, Mesh):
        report.sections.append(("logs of the lab", mesh.lab.logs()))
    return report
