"""`python -m talstack.cli`, for launchers such as torchrun."""

from talstack.cli.main import main

main()
