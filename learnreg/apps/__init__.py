"""Command line and Hydra mains: wiring only."""
