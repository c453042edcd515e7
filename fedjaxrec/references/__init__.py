"""References outside the federation, fitted where all the data lies."""
