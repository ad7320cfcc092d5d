"""State that follows the slices: written to RocksDB after the commit, recovered from Kafka."""
