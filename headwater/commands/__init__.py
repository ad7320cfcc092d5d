"""The commands of `headwater`, one group a file. They parse, print and choose exit codes; `headwater.groups` names them.

Not here: what they find and do (`pipeline/operate`, `pipeline/flows`, `pipeline/replay`). A module imports that when a command
runs, so that the help and the completion do not wait for it.
"""
