"""The lake: sink topics as Parquet files in an object store, or as Iceberg tables.

`sink.py` writes files, `layouts/` decides the rows, `manifests.py` lists files; `verify`, `maintain`, `compact` and `ddl` serve
`headwater lake`. `iceberg/` writes tables.
"""
