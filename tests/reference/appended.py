"""Windows of appended days the slow way: one row after another, looking at all rows before."""


def window_rows(days, window, *, scope, lengths, min_counts=(1, 1)):
    """Rows of a window: (user, item, label, time, history...), None for an id that is too rare so far.

    days: lists of (user, item, time, label); the first is the training split, the others windows, in
    time order. An id is known from the day on in which it reaches its count, users' first. A row sees
    known items, strictly earlier, of earlier days and with scope `past` of its own: the last of label 1,
    and of label 0 if `lengths` has two.
    """
    known = {
        side: {day: _known(days[: day + 1], side, count) for day in range(len(days))}
        for side, count in enumerate(min_counts)
    }
    rows = []
    for user, item, time, label in days[window]:
        earlier = [
            (when, day, place, seen, of_label)
            for day in range(window + (scope == "past"))
            for place, (who, seen, when, of_label) in enumerate(days[day])
            if user in known[0][window]
            and who == user
            and who in known[0][day]
            and seen in known[1][day]
            and when < time
        ]
        histories = [
            tuple(seen for *_, seen, of_label in sorted(earlier) if of_label == kind)[-length:]
            for kind, length in zip((1, 0), lengths, strict=False)
        ]
        rows.append((
            user if user in known[0][window] else None,
            item if item in known[1][window] else None,
            label,
            time,
            *histories,
        ))
    return rows


def _known(days, side, count):
    ids = [row[side] for day in days for row in day]
    return {i for i in ids if ids.count(i) >= count}
