"""``python -m avcl``: the shell."""

from avcl.cli import main

main()
