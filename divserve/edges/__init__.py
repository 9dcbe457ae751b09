"""The edges of the server: who may send requests, how many, and how the server drains.

Pure ASGI middleware around vLLM's app, outermost first: `request_id`, `shape` (errors),
`auth` (keys), `admission` (drain, rates, queue), `body` (bytes, depth, items, fields). Answers pass
through message by message; only errors are buffered. `slow_readers` is beneath them all: uvicorn's
connection with a timeout. `flags` has the command-line flags.
"""
