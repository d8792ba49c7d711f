"""`hdit encode`: what a codec makes of the pictures of a data set, beside them."""
