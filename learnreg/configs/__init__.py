"""Hydra configurations: where the files are, their schema, and checks before anything is built."""
