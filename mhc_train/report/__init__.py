"""Comparisons: finished runs side by side, whether they may be compared, what differs, and the pages that say so."""
