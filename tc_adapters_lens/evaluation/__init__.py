"""Measuring how faithful adapters are to the target."""
