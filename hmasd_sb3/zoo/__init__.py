"""HMASD in RL Zoo (rl_zoo3): its programs for training, playing, searching and plotting work for teams.

Needs the extra ``zoo``. Importing this room imports none of RL Zoo; :func:`register` does.
"""

from hmasd_sb3.running.shipped import shipped_file, shipped_ids
from hmasd_sb3.zoo.registration import register

__all__ = ["register", "shipped_file", "shipped_ids"]
