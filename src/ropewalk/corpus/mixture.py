"""Mixtures: the number of training tokens taken from each subset, by weights over sources and subsets."""

from collections.abc import Mapping


def pool_of(subset: str, weights: Mapping[str, float]) -> str | None:
    """The key of ``weights`` for a subset: its name, or the source's in ``SOURCE/SUBSET``; None if there is neither."""
    if subset in weights:
        return subset
    source = subset.partition("/")[0]
    return source if source in weights else None


def quotas(available: Mapping[str, int], weights: Mapping[str, float], *, tokens: int | None) -> dict[str, int]:
    """Number of tokens to take for each key of ``weights``.

    Shares are exact to the token: they are rounded down, and the tokens that are left go to the largest remainders.

    Args:
        available: number of tokens of each subset.
        tokens: total number of tokens; None for as many as the scarcest key allows.

    Raises:
        ValueError: a key has no documents, or too few for ``tokens``; the error names it.
    """
    pools = dict.fromkeys(weights, 0)
    for subset, count in available.items():
        if (pool := pool_of(subset, weights)) is not None:
            pools[pool] += count
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
    rounded = {pool: int(share) for pool, share in exact.items()}
    for pool in sorted(exact, key=lambda pool: rounded[pool] - exact[pool])[: total - sum(rounded.values())]:
        rounded[pool] += 1
    return {pool: min(count, pools[pool]) for pool, count in rounded.items()} | {
        pool: 0 for pool, weight in weights.items() if not weight
    }
