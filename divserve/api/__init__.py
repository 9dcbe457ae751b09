"""HTTP: the ``decoding`` field on vLLM's OpenAI app, its account in the answers, and its errors."""
