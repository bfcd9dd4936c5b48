"""All Ray Data code: decoding of files to blocks, prediction of shards, and preparation of shards."""
