"""Model files: what is in them, how they are written so that no good one is ever lost, and read without running code."""

from hmasd_sb3.saving.archive import (
    CorruptFileError,
    ForeignFileError,
    ModelFileError,
    UntrustedFileError,
    verify_model_file,
)

__all__ = ["CorruptFileError", "ForeignFileError", "ModelFileError", "UntrustedFileError", "verify_model_file"]
