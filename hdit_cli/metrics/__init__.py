"""Distances between two sets of pictures: features, streaming moments, Fréchet, kernel, sliced Wasserstein."""
