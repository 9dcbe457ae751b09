"""divserve: an OpenAI-compatible server around vLLM that decodes by comparing distributions."""

__all__ = ["__version__"]

__version__ = "0.1.0"
