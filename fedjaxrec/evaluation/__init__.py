"""What the recommendations are worth: ranking, metrics, groups, controls."""
