"""Its distribution requires opsocket>=99: never to be imported, or this file says that it was."""

import os
from pathlib import Path

Path(os.environ["SAMPLE_IMPORTED"]).write_text("imported")
