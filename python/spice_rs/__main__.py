"""`python -m spice_rs` is the command `spice-rs`."""

import sys

from spice_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
