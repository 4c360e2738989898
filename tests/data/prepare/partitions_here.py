"""Partitions in this process: the steps that workers of Ray run, one after the other and without Ray."""

import pickle
from contextlib import contextmanager

from recsys.data.prepare.ray_cluster import Done
from recsys.data.prepare.ray_window import PartitionedWindow
from recsys.data.prepare.ray_worker import run_step, stream_step

MEMORY = "300MB"


class ClusterHere:
    """Stands in for ray_cluster.Cluster; tables are their own references."""

    num_cores = 2

    def __init__(self, scratch):
        self._scratch = scratch

    def put(self, table):
        return table

    def get(self, reference):
        return reference

    def run(self, name, step, tasks, num_tables):
        done = []
        for task in tasks:
            result = run_step(step, MEMORY, self._scratch, *self._call(task))
            summary, *tables = result if num_tables else (result,)
            assert len(tables) == num_tables, name
            done.append(Done(summary, tables))
        return done

    def stream(self, name, step, tasks):
        found = []
        for task in tasks:
            *tables, end = stream_step(step, MEMORY, self._scratch, *self._call(task))
            assert end is None, name
            found.append(tables)
        return found

    def _call(self, task):
        names = [(name, len(pieces)) for name, pieces in task.tables.items()]
        pieces = [piece for given in task.tables.values() for piece in given]
        return names, pickle.loads(pickle.dumps(dict(task.arguments))), *pieces


def window_here(partitions):
    """A holder of a window's rows in partitions of this process."""

    @contextmanager
    def hold(engine, recipe, inputs, earlier):
        cluster = ClusterHere(engine.scratch)
        yield PartitionedWindow(engine, recipe, inputs, earlier, cluster, partitions)

    return hold
