"""HMASD in RL Zoo (rl_zoo3): its programs for training, playing, searching and plotting work for teams.

Needs the extra ``zoo``. Importing this room imports none of RL Zoo; :func:`register` does.
"""

from hmasd_sb3.zoo.registration import register
from hmasd_sb3.zoo.shipped import shipped_file, shipped_ids

__all__ = ["register", "shipped_file", "shipped_ids"]
