"""The recommenders: one model a file, listed in `MODELS` of `registry`."""
