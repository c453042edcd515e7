"""Fitting a trained model to one client."""
