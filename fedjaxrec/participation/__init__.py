"""Who takes part in a round, and in which block. Host side, cheap NumPy."""
