"""No test is left out unless tests/skips.yaml says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOKS = "from skip_list import *\n"
TESTS = """
import pytest
def test_skipped():
    pytest.skip("no browser")
@pytest.mark.parametrize("case", [1, 2])
@pytest.mark.skipif(True, reason="no GPU")
def test_cases(case):
    pass
@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    assert False
"""


def run(folder: Path, skips: str, tests: str = TESTS) -> subprocess.CompletedProcess[str]:
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (folder / "tests" / "conftest.py").write_text(HOOKS)
    (folder / "tests" / "test_a.py").write_text(tests)
    (folder / "tests" / "skips.yaml").write_text(skips)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "tests"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_listed_skips_pass(tmp_path: Path) -> None:
    result = run(tmp_path, "tests/test_a.py::test_skipped: needs a browser\ntests/test_a.py::test_cases: needs a GPU\n")
    assert result.returncode == 0, result.stdout
    assert "3 skipped, 1 xfailed" in result.stdout


def test_a_skip_that_is_not_listed_fails(tmp_path: Path) -> None:
    result = run(tmp_path, "tests/test_a.py::test_skipped: needs a browser\n")
    assert result.returncode == 1
    assert "test_cases[1] was skipped and is not in tests/skips.yaml" in result.stdout
    assert "1 skipped, 1 xfailed, 2 errors" in result.stdout


@pytest.mark.parametrize(
    ("skips", "tests", "message"),
    [
        ("tests/test_a.py::test_gone: it was slow\n", TESTS, "test_gone names no test; remove the entry"),
        ("tests/test_b.py: it was slow\n", TESTS, "tests/test_b.py names no file; remove the entry"),
        ("tests/test_a.py: ''\n", TESTS, "tests/test_a.py has no reason"),
        (
            "",
            "import pytest\n@pytest.mark.slow\ndef test_long(): pass\n",
            "test_long is slow and not in tests/skips.yaml",
        ),
        ("", "import pytest\npytest.importorskip('no_such_package')\n", "test_a.py was skipped and is not in"),
    ],
)
def test_the_list_and_the_tests_agree(skips: str, tests: str, message: str, tmp_path: Path) -> None:
    result = run(tmp_path, skips, tests)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
