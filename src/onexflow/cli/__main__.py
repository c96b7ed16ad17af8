from __future__ import annotations

import sys

from onexflow.cli.main import main

sys.exit(main())
