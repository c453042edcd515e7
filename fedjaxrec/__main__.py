"""`python -m fedjaxrec` is `fedjaxrec`."""

import sys

from fedjaxrec.cli import main

if __name__ == '__main__':
  sys.exit(main())
