"""Networks: one architecture per file, the layers they share, attention and its backends."""
