"""Windows of appended days the slow way: one row after another, looking at all rows before."""


def window_rows(days, window, *, scope, max_length, min_counts=(1, 1)):
    """Rows of a window: (user, item, label, time, history), None for an id that is too rare so far.

    days: lists of (user, item, time, label); the first is the training split, the others windows, in
    time order. An id is known from the day on in which it reaches its count, users' first. A row sees
    positives of known items, strictly earlier, of earlier days and with scope `past` of its own.
    """
    known = {
        side: {day: _known(days[: day + 1], side, count) for day in range(len(days))}
        for side, count in enumerate(min_counts)
    }
    rows = []
    for user, item, time, label in days[window]:
        history = []
        if user in known[0][window]:
            earlier = [
                (when, day, place, liked)
                for day in range(window + (scope == "past"))
                for place, (who, liked, when, positive) in enumerate(days[day])
                if who == user
                and who in known[0][day]
                and liked in known[1][day]
                and positive
                and when < time
            ]
            history = [liked for *_, liked in sorted(earlier)][-max_length:]
        rows.append((
            user if user in known[0][window] else None,
            item if item in known[1][window] else None,
            label,
            time,
            tuple(history),
        ))
    return rows


def _known(days, side, count):
    ids = [row[side] for day in days for row in day]
    return {i for i in ids if ids.count(i) >= count}
