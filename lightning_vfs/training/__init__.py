"""What training needs in addition to networks: optimizer, averaged weights, checkpoints, sharding, resuming."""
