"""A model for others: exports, conversions, cards."""
