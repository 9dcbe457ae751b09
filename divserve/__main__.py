"""``python -m divserve``: the same as the ``divserve`` command."""

import sys

from divserve.cli import main

# vLLM starts its engine in a child process that imports this module again.
if __name__ == "__main__":
    sys.exit(main())
