"""A project that is installed into an app's environment, but not served."""
