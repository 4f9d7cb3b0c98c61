"""`python -m fastdm` is the `fastdm` command."""

from fastdm.cli import main

main()
