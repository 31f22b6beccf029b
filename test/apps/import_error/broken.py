"""Raises while it is imported, and names a secret in doing so."""

import os

raise RuntimeError("no database at " + os.environ.get("DATABASE_URL", "nowhere"))
