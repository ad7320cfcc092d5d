"""Commits to an Iceberg table: data and properties in one step, one snapshot each, and metadata that stay small."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile
from pyiceberg.table import FileScanTask, Table, TableProperties, Transaction
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _OverwriteFiles
from pyiceberg.utils.properties import property_as_bool, property_as_int

PARTITION = "_topic_partition"
"""The column of the sink topic's partition."""
PARTITION_BEFORE = "_partition"
"""Its name in tables of an earlier version. Iceberg reserves it: Spark cannot read all columns of such a table."""
DEFAULTS = {
    TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED: "true",
    TableProperties.METADATA_PREVIOUS_VERSIONS_MAX: "20",
    TableProperties.MANIFEST_MERGE_ENABLED: "true",
    TableProperties.MANIFEST_MIN_MERGE_COUNT: "20",
}
"""Properties that every table of ours has, unless it has others: without them metadata grow faster than data."""
MEMORY = 256 << 20
"""Bytes of Arrow after which rows of replaced files are written out."""


DELETERS = 16
"""Files that are deleted at once."""
log = logging.getLogger(__name__)


class Overwrite(_OverwriteFiles):
    """Files removed and files added, in one snapshot.

    pyiceberg's own keeps the manifests of removed files forever, and ignores the properties for merging manifests.
    """

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        properties = self._transaction.table_metadata.properties
        live = [
            manifest
            for manifest in manifests
            if manifest.has_added_files()
            or manifest.has_existing_files()
            or manifest.added_snapshot_id == self.snapshot_id
        ]
        merging = _ManifestMergeManager(
            target_size_bytes=_number(properties, "MANIFEST_TARGET_SIZE_BYTES"),
            min_count_to_merge=_number(properties, "MANIFEST_MIN_MERGE_COUNT"),
            merge_enabled=property_as_bool(properties, TableProperties.MANIFEST_MERGE_ENABLED, False),
            snapshot_producer=self,
        )
        data = [file for file in live if file.content == ManifestContent.DATA]
        return merging.merge_manifests(data) + [file for file in live if file.content != ManifestContent.DATA]


def once(table: Table) -> Table:
    """Return a table whose commits fail when another came before them: pyiceberg would add the rows to that one's."""
    properties = {**table.metadata.properties, TableProperties.COMMIT_NUM_RETRIES: "0"}
    table.metadata = table.metadata.model_copy(update={"properties": properties})
    return table


def iceberg_partition(table: Table | None) -> str:
    """Return the column that holds the partition of the sink topic."""
    names = table.schema().column_names if table is not None else []
    is_before = PARTITION_BEFORE in names and PARTITION not in names
    return PARTITION_BEFORE if is_before else PARTITION


def begin_table(
    catalog: Catalog, identifier: tuple[str, str], schema: pa.Schema, by: str | None, properties: Mapping[str, str]
) -> Transaction:
    """Return a transaction that makes a table, partitioned by a column; it fails when another has made it."""
    transaction = catalog.create_table_transaction(identifier, schema=schema, properties={**DEFAULTS, **properties})
    if by is not None:
        with transaction.update_spec() as spec:
            spec.add_identity(by)
    return transaction


def grow_table(transaction: Transaction, schema: pa.Schema) -> None:
    """Give a table the columns that it lacks."""
    if set(schema.names) - set(transaction.table_metadata.schema().column_names):
        with transaction.update_schema() as update:
            update.union_by_name(schema)


def set_properties(transaction: Transaction, properties: Mapping[str, str | None]) -> None:
    """Set properties, those that every table of ours has too; None takes one away."""
    there = transaction.table_metadata.properties
    wanted = {name: value for name, value in DEFAULTS.items() if name not in there}
    transaction.set_properties({**wanted, **{name: value for name, value in properties.items() if value is not None}})
    if gone := [name for name, value in properties.items() if value is None]:
        transaction.remove_properties(*gone)


def read_file(transaction: Transaction, table: Table, task: FileScanTask) -> pa.Table:
    """Return all rows of a data file, with the columns that the table has by now."""
    metadata = transaction.table_metadata
    return ArrowScan(metadata, table.io, metadata.schema(), AlwaysTrue()).to_table([task])


def write_files(transaction: Transaction, table: Table, pieces: Iterable[pa.Table]) -> list[DataFile]:
    """Write rows as data files, large ones of many small pieces; they belong to nothing yet."""
    token, counter, files = uuid4(), itertools.count(), list[DataFile]()

    def write_out(some: list[pa.Table]) -> None:
        rows = pa.concat_tables(some, promote_options="permissive")
        if rows.num_rows:
            files.extend(_dataframe_to_data_files(transaction.table_metadata, rows, table.io, token, counter))

    held: list[pa.Table] = []
    for piece in pieces:
        held.append(piece)
        if sum(part.nbytes for part in held) >= MEMORY:
            write_out(held)
            held = []
    if held:
        write_out(held)
    return files


def replace(transaction: Transaction, table: Table, removed: Iterable[DataFile], added: Iterable[DataFile]) -> None:
    """Remove data files and add others, in one snapshot."""
    with Overwrite(Operation.OVERWRITE, transaction, table.io) as snapshot:
        for file in removed:
            snapshot.delete_data_file(file)
        for file in added:
            snapshot.append_data_file(file)


def delete(table: Table, locations: Sequence[str]) -> None:
    """Delete files; one that cannot be deleted is for the next run."""

    def one(location: str) -> None:
        try:
            table.io.delete(location)
        except OSError as error:
            log.warning("%s could not be deleted: %s", location, error)

    with ThreadPoolExecutor(DELETERS, "delete") as threads:
        list(threads.map(one, locations))


def _number(properties: Mapping[str, str], name: str) -> int:
    found = property_as_int(
        dict(properties), getattr(TableProperties, name), getattr(TableProperties, f"{name}_DEFAULT")
    )
    return int(found or 0)
