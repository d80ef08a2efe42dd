"""The stages, one a file, in pipeline order: the only folder that imports ray. They move data; nouns compute."""
