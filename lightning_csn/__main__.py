"""`python -m lightning_csn` is the command `lightning-csn`."""

import sys

from lightning_csn.cli import main

if __name__ == "__main__":
    sys.exit(main())
