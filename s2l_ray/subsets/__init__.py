"""A finished subset: what it came from, why a row is in it, how it differs from another, and how it is taken along."""
