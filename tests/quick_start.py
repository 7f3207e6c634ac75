"""Does the README's first block do what the README says? In a fresh clone: five minutes on two idle cores.

    python tests/quick_start.py

Runs each command as it stands there, prints its seconds, and ends with status 1 if the text that the last one
prints is not the README's to the letter. The last digits of arithmetic differ between kinds of processors:
another machine may write another text.
"""
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(python3 -m venv.*?)```", readme, re.S)[1]
    promised = re.search(r"prints:\s+```\n(.*?)```", readme, re.S)[1]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
        for line in block.strip().splitlines():
            began = time.perf_counter()
            active = f"[ -d .venv ] && . .venv/bin/activate; {line}"
            done = subprocess.run(["bash", "-c", active], cwd=folder, capture_output=True, text=True)
            print(f"{time.perf_counter() - began:5.0f} s  {line}", flush=True)
            if done.returncode:
                sys.exit(f"status {done.returncode}: {done.stderr.strip()[-500:]}")
    same = promised.strip() == done.stdout.strip()
    print("the README's text, to the letter" if same else f"another text:\n{done.stdout}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
