"""`python -m pthserve` is `pthserve`."""

from pthserve.cli.main import main

main()
