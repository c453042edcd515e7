"""Sums of clients' updates: who learns what, at which cost."""
