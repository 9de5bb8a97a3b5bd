"""What training needs beside networks: optimizer, averages of weights, checkpoints, sharding, steps that go wrong."""
