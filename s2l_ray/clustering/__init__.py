"""Clusters of trajectories: how rows are grouped, which are kept out, and whether later ones are like them."""
