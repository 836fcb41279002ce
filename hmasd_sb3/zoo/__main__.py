"""``python -m hmasd_sb3.zoo <program> ...``, the same as ``hmasd zoo <program> ...``."""

import sys

from hmasd_sb3.commands.zoo import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
