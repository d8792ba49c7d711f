"""Attention over maps of tokens, (N, H, W, heads, d): global, shifted windows, and neighborhoods through `dispatch`."""
