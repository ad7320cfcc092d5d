"""The lake as Iceberg tables, by pyiceberg: `sink.py` writes, `commit.py` commits, `items.py` decides which change is newer.

Needs the extra `iceberg`.
"""
