"""The worker's side: what is done to the logits and tokens of a step."""
