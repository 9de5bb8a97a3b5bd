"""Run the commands named in a JSON file one after the other: what each prints goes to <name>.out and <name>.err.

As a process of its own, which no test has prepared, with the messages where a user would see them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lightning_vfs.cli import main

for name, arguments in json.loads(Path(sys.argv[1]).read_text()).items():
    for descriptor, suffix in ((1, "out"), (2, "err")):
        file = os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    status = main(arguments)
    sys.stdout.flush()
    if status:
        sys.exit(f"{name} has ended with {status}")
