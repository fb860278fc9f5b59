"""Trackers: a service that shows what a run's files say. None of its failures can reach the training."""

from mhc_train.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "open_tracker"]
