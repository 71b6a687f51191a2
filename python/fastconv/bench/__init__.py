"""The benchmark: `python -m fastconv bench`.

`cases` knows the layers, `worker` runs one contender in a process of its own, `peers` drives those processes, `run`
holds a session, `report` shows it.
"""
