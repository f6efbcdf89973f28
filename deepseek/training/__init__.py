"""Runs, alone or on many processes."""
