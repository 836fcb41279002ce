"""Networks of HMASD and the policy that joins them."""

from hmasd_sb3.policies.coordinator import RandomCoordinator, SkillCoordinator, TransformerCoordinator
from hmasd_sb3.policies.policy import HMASDCnnPolicy, HMASDPolicy
from hmasd_sb3.policies.spec import TeamSpaceError, TeamSpec

__all__ = [
    "HMASDCnnPolicy",
    "HMASDPolicy",
    "RandomCoordinator",
    "SkillCoordinator",
    "TeamSpaceError",
    "TeamSpec",
    "TransformerCoordinator",
]
