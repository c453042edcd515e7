"""What happens to an update: Optax transforms, usable outside this project."""
