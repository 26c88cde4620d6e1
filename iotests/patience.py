"""How long scripts wait: limits for what should come soon, never a measure of speed.

TEST_PATIENCE stretches every limit (a factor, default 1), and so does a machine with more work than processors. Waits of
less than two seconds show that something does not come: they are no limits and stay as they are.
"""

import os

MOST_LOAD = 20
LEAST_SECONDS = 30


def limit(seconds):
    """The seconds to wait, at the most, for what takes less than `seconds` on an idle machine."""
    if seconds < 2:
        return seconds
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    asked = float(os.environ.get('TEST_PATIENCE') or 1)
    return max(seconds, LEAST_SECONDS) * asked * min(max(load, 1), MOST_LOAD)
