"""Raises an exception with a secret while it is imported."""

import os

raise RuntimeError("no database at " + os.environ.get("DATABASE_URL", "nowhere"))
