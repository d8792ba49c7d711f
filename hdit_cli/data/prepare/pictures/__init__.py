"""One file at a time: read within limits, converted, fitted, encoded, or refused."""
