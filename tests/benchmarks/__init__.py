"""Measurements against peers, as ratios within one run; nothing here asserts a time."""
