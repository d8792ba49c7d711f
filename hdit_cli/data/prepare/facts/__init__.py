"""What is said of pictures: names and texts, tables and JSON, and the labels and captions in them."""
