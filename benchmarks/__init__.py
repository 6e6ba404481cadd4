"""Measurements beside the package, which the wheel leaves out."""
