"""`python -m mulosd` is the command line."""

from .cli import main

main()
