"""Slow id map: the rule of a table with a fixed capacity, id by id in plain Python."""

DAY = 86_400


class SlowIdMap:
    """Dictionaries instead of arrays; a window is a list of (id, time) occurrences."""

    def __init__(self, capacity, count=1, after_days=None, least_recent=False):
        self.capacity, self.count = capacity, count
        self.after_days, self.least_recent = after_days, least_recent
        self.row_of, self.counts, self.last, self.now = {}, {}, {}, None

    def update(self, window):
        """Apply the rule; return the rows that begin anew, ascending, or None where none fits."""
        for one, time in window:
            self.counts[one] = self.counts.get(one, 0) + 1
            self.last[one] = max(time, self.last.get(one, time))
            self.now = time if self.now is None else max(time, self.now)
        in_window = sorted({one for one, _ in window})
        entitled = [i for i in in_window if self.counts[i] >= self.count and not self._is_old(i)]
        if len(entitled) > self.capacity:
            return None
        freed = [self.row_of.pop(i) for i in list(self.row_of) if self._is_old(i)]
        coming = [i for i in entitled if i not in self.row_of]
        if self.least_recent:
            ranked = sorted([*self.row_of, *coming], key=self._place)
            kept = set(ranked[: self.capacity])
            freed += [self.row_of.pop(i) for i in list(self.row_of) if i not in kept]
            coming = [i for i in coming if i in kept]
        else:
            coming = sorted(coming, key=self._place)[: self.capacity - len(self.row_of)]
        free = [r for r in range(1, self.capacity + 1) if r not in self.row_of.values()]
        given = dict(zip(sorted(coming), free, strict=False))
        self.row_of |= given
        return sorted({*freed, *given.values()})

    def _is_old(self, one):
        return self.after_days is not None and self.last[one] < self.now - self.after_days * DAY

    def _place(self, one):
        return -self.last[one], -self.counts[one], one
