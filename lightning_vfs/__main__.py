"""python -m lightning_vfs."""

import sys

from lightning_vfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
