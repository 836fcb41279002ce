"""One torch thread per test process: more of them only get in each other's way on networks this small."""

import pathlib
import sys

import torch as th

sys.path.insert(0, str(pathlib.Path(__file__).parent))
th.set_num_threads(1)
