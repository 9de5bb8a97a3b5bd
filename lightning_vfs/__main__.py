"""python -m lightning_vfs."""

import os
import sys

if sys.path[:1] == [os.getcwd()] and os.path.dirname(os.path.dirname(__file__)) != os.getcwd():
    # As for the command `lightning-vfs`: a working folder that was downloaded must not replace modules.
    del sys.path[0]

from lightning_vfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
