"""Snapshots: all items of a table as changes, by scan or by an export to S3, beside the capture of its stream."""
