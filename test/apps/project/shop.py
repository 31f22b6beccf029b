"""A project that an app's environment is made from, not what it serves."""
