"""
A config for rq-dashboard, ``rq-dashboard -c workers.dashboard``: it unpickles nothing.

rq-dashboard reads some pages with RQ's default serializer, which is pickle, with any options,
and clients write job hashes. Importing this makes JSON of it, for the whole process. See docs/reference/rq.md.
"""

from __future__ import annotations

from rq.serializers import DefaultSerializer, JSONSerializer

# The class itself: RQ and the dashboard know it by several names.
DefaultSerializer.loads = staticmethod(JSONSerializer.loads)
DefaultSerializer.dumps = staticmethod(JSONSerializer.dumps)
