"""Named recipes, one a file, composed from the rooms above."""
