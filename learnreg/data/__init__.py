"""Data: formats on disk, preprocessing, pairs, augmentation, synthesis."""
