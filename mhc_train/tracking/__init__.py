"""Trackers: where metrics go besides metrics.jsonl. A tracker that fails never stops a training."""

from mhc_train.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "open_tracker"]
