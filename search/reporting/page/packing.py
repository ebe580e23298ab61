"""Text that is compressed in the page, which unpacks it."""

import base64
import gzip


def packed(text: str) -> str:
    """Return a text compressed with gzip, in base64: plotly.js is 2 MB so, and 4.8 MB as it is."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
