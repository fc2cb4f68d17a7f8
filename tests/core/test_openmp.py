"""OpenMP's threads sleep while they wait, unless the user wants it otherwise; told before torch is loaded."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, reformer_core.openmp, os
modules = list(sys.modules)
assert "torch" not in modules or modules.index("reformer_core.openmp") < modules.index("torch")
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("set_by_user", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_unless_the_user_says_otherwise(set_by_user: str | None, policy: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if set_by_user is not None:
        environment["OMP_WAIT_POLICY"] = set_by_user
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == policy
