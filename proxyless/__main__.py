"""`python -m proxyless`."""

import sys

from proxyless.cli import main

sys.exit(main())
