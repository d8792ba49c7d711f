"""Pictures against a reference: one pass, scores, sweeps."""
