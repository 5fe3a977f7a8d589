"""A prepared corpus that is larger than the disk: published in shards, read through a bounded folder."""
