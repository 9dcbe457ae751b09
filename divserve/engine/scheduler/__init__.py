"""The scheduler's side: which rows run together in a step."""
