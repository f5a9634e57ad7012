"""Exact answers to searches in numpy, for sets whose vectors are known as floats."""

import numpy as np


def scores(metric, rows, query):
    """Of each row: what WITHSCORES shows."""
    rows, query = np.asarray(rows, np.float64), np.asarray(query, np.float64)
    if metric == "L2":
        return 1 / (1 + np.linalg.norm(rows - query, axis=1))
    dots = rows @ query
    if metric == "IP":
        return dots
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return (1 + dots / np.where(norms == 0, 1, norms)) / 2


def best(found, count):
    """The places of the `count` best of an array of scores, best first, ties by place."""
    return np.argsort(-found, kind="stable")[:count]


def mmr(metric, rows, relevance, weight, count):
    """The places that maximal marginal relevance chooses (Carbonell, Goldstein 1998); of equals
    the more relevant one."""
    chosen, rest = [], [int(i) for i in best(relevance, len(rows))]
    nearest = np.zeros(len(rows))
    while rest and len(chosen) < count:
        value = weight * relevance[rest] - (1 - weight) * nearest[rest]
        place = rest[int(np.argmax(value))]
        similar = scores(metric, rows, rows[place])
        nearest = np.maximum(nearest, similar) if chosen else similar
        chosen.append(place)
        rest.remove(place)
    return chosen


def rrf(lists, k=60):
    """place -> score of reciprocal rank fusion over ordered lists of places."""
    total = {}
    for places in lists:
        for rank, place in enumerate(places, 1):
            total[place] = total.get(place, 0) + 1 / (k + rank)
    return total
