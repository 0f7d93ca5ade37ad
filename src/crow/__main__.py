"""`python -m crow`."""

from crow.cli import main

main()
