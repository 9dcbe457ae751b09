"""The edges of the server: who may ask, how much, and how it stops asking for more.

Pure ASGI middleware around vLLM's app, outermost first: `request_id`, `shape` (errors),
`auth` (keys), `admission` (drain, rates, queue), `body` (bytes, depth, fields). Answers pass
through message by message; only errors are ever collected. `flags` has what the server can be told.
"""
