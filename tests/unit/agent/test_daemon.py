import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("daemon_cases.py")


def test_the_daemon_in_a_network_of_its_own() -> None:
    """A process of their own for the cases: gRPC's threads stay in the network that they began in."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a network namespace")
    command = ["unshare", "--net", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CASES.parents[3])
    assert done.returncode == 0, done.stdout[-8000:]
