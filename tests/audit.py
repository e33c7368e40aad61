"""Ask what is known against the versions that are installed here; ``make audit``."""

from __future__ import annotations

import subprocess
import sys
import urllib.request

ASKED = "https://pypi.org/pypi/pip/json"


def main() -> int:
    """Return pip-audit's exit code, or 2 where nobody can be asked."""
    try:
        urllib.request.urlopen(ASKED, timeout=20).close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        print(
            f"make audit asks pypi.org what is known against each installed version, and it cannot be reached "
            f"({reason}); run it where there is a network.",
            file=sys.stderr,
        )
        return 2
    words = ["--skip-editable", "--progress-spinner=off", "--desc=off"]
    return subprocess.run([sys.executable, "-m", "pip_audit", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
