"""`python -m refsnn` is the command `refsnn`."""

import sys

from refsnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
