"""Keep OpenCV to one thread while small pictures are worked on, and leave the host program's setting alone."""

from __future__ import annotations

import threading

import cv2


class _OneThread:
    """Context in which OpenCV starts no threads of its own; it may be entered by several threads, and again.

    Pictures are small, and loaders and writers have a process per core: OpenCV's own threads would only fight over
    the cores. Entering and leaving take a microsecond.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._entered:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(0)
            self._entered += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                cv2.setNumThreads(self._before)


one_thread = _OneThread()
"""`with one_thread:` …"""
