"""HTTP: the ``decoding`` field of vLLM's OpenAI app, its account in the answers, and its errors."""
