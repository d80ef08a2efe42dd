"""How rows are read from a file of each format, one after the other, and copied out untouched."""
