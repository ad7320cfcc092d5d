"""The commands of `headwater`, one group a file; `headwater.groups` names them.

A module here imports when it is loaded only what its options need. What a command works with is imported when it runs: the
help, the completion and the other commands do not wait for it.
"""
