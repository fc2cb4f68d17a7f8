"""Settings of all tests: nothing is fetched from a model hub, and examples don't fail for being slow."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("reformer", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("reformer")
