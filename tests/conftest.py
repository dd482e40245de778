"""Hypothesis profiles: no deadlines (kernels compile during tests), and a fast one for showing that a test fails."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile(
    "mutants",
    parent=settings.get_profile("tests"),
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # a failure is enough, the smallest one is not needed
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))
