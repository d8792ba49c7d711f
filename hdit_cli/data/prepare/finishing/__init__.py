"""From the shards to the data set: numbering, duplicates, report, preview, manifest."""
