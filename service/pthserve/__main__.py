"""`python -m pthserve` is `pthserve`."""

from pthserve.cli import main

main()
