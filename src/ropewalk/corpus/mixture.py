"""Mixtures: how many training tokens each subset gives, exactly, by weights over sources and subsets."""

from collections.abc import Mapping


def pool_of(subset: str, weights: Mapping[str, float]) -> str | None:
    """The key of ``weights`` that a subset counts to: its own name, or else that of its source (``SOURCE/SUBSET``)."""
    if subset in weights:
        return subset
    source = subset.partition("/")[0]
    return source if source in weights else None


def quotas(available: Mapping[str, int], weights: Mapping[str, float], *, tokens: int | None) -> dict[str, int]:
    """Tokens of each key of ``weights``: as many as the scarcest allows, or ``tokens`` in all.

    Shares are exact to the token: what rounding down leaves goes to the largest remainders.

    Args:
        available: tokens by subset.

    Raises:
        ValueError: a key has no documents, or too few for ``tokens``; names it.
    """
    pools = dict.fromkeys(weights, 0)
    for subset, own in available.items():
        if (pool := pool_of(subset, weights)) is not None:
            pools[pool] += own
    whole = sum(weights.values())
    shares = {pool: weight / whole for pool, weight in weights.items() if weight}
    if empty := sorted(pool for pool in shares if not pools[pool]):
        raise ValueError(
            f"corpus.weights names {', '.join(empty)}, of which there is no training document; "
            f"there are {', '.join(sorted(available)) or 'none'}"
        )
    most = min(int(pools[pool] / share) for pool, share in shares.items())
    if tokens is not None and tokens > most:
        scarce = min(shares, key=lambda pool: pools[pool] / shares[pool])
        raise ValueError(
            f"corpus.mixture_tokens {tokens} needs {int(tokens * shares[scarce])} training tokens of {scarce}, "
            f"there are {pools[scarce]}; at most {most} can be mixed"
        )
    total = most if tokens is None else tokens
    exact = {pool: total * share for pool, share in shares.items()}
    given = {pool: int(own) for pool, own in exact.items()}
    for pool in sorted(exact, key=lambda pool: given[pool] - exact[pool])[: total - sum(given.values())]:
        given[pool] += 1
    return {pool: min(own, pools[pool]) for pool, own in given.items()} | {
        pool: 0 for pool, weight in weights.items() if not weight
    }
