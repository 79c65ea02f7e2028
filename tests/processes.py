"""Python in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(script: str, *arguments: object) -> str:
    """What `script` prints; it must end well and print no error. Modules of the tests can be imported."""
    done = python(script, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def python(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """How `script` ends, and what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    places = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
