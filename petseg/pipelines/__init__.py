"""All Ray Data code: files to decoded blocks, photos to predicted shards, pairs to prepared shards."""
