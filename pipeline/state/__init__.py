"""State that follows the slices: written to RocksDB after the commit, recovered from a changelog in Kafka.

`table_partitions.py` is what the tables have in common, `seen.py` is the seen table, `flow_state.py` and `held_changes.py` are
what flows remember. Not here: who decides what is remembered (`pipeline/steps`, `pipeline/flows`).
"""
