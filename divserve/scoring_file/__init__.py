"""Scores of a file of texts, through a running server: ``divserve score``.

It imports neither torch nor the server's side, so it runs on any machine that reaches a server.
"""
