"""`python -m longconn`."""

import sys

from longconn.cli import main

if __name__ == "__main__":
    sys.exit(main())
