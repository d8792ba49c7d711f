"""Bytes and files of images: the shard format, prepare, reader, order, augmentation."""
