"""The commands of `headwater`, one group a file."""
