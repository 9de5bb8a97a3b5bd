"""`lightning-vfs` whose worker processes are started in another way: `python start_method.py METHOD ARGUMENT...`"""

from __future__ import annotations

import multiprocessing
import sys

from lightning_vfs.cli import main

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
