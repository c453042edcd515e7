"""Differential privacy: accounting, calibration, budget, audits."""
