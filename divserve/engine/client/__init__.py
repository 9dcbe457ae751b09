"""The API process's side of the engine: checks, statistics, hand-off between engines."""
