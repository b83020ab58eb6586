"""Run the command line with ``python -m gen_unlearn``."""

from gen_unlearn.cli import main

main()
