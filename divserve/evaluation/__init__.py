"""``divserve eval``: methods against plain decoding, on task files, through the HTTP API.

Runs in a process of its own and needs neither torch nor vLLM. `items` says what a task is, `arms`
what is compared, `run` asks the server, `statistics` and `texts` compute, `report` writes.
"""
