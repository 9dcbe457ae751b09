"""What every part of the HTTP side stands on: errors, paths, bodies, vLLM's OpenAI classes."""
