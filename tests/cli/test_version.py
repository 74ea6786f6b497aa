"""`pointsman --version` answers without importing any command."""

import subprocess
import sys
from importlib.metadata import version


def test_the_version_needs_nothing_else() -> None:
    code = (
        "import sys; from cli.main import main; status = main(['--version'])\n"
        "heavy = {'pydantic', 'yaml', 'cli.serve', 'cli.up', 'config.problem'} & set(sys.modules)\n"
        "print(status, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"pointsman {version('pointsman')}\n0 set()\n"
