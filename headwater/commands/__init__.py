"""The commands of `headwater` that have sub-commands of their own, one group a file."""
