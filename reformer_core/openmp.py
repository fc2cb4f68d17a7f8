"""How torch's CPU threads wait for each other: asleep. Imported before torch, for OpenMP reads it when torch loads.

By default they spin, and whatever else wants a core, such as the server's event loop or another process, then stalls
every operation: decode steps beside busy processes took ten times as long. A policy that the user
has set is left alone.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
