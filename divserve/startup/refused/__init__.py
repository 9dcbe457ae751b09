"""What does not start: modes of vLLM in which guided decoding would be wrong, each with its reason.

``docs/models.md`` lists these tables, and a test triggers every row.
"""

from __future__ import annotations

from divserve.startup.refused.arguments import ARGUMENTS
from divserve.startup.refused.configs import CONFIG
from divserve.startup.refused.extras import AMATEUR, LOOK_BACK, RECURRENT
from divserve.startup.refused.refusal import Refusal, refuse

__all__ = ["AMATEUR", "ARGUMENTS", "CONFIG", "LOOK_BACK", "RECURRENT", "Refusal", "refuse"]
