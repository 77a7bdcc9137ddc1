"""The road's lengths and the searches on it."""

from urllib.parse import urlsplit

from ropewalk.config import Config, SearchTargetConfig
from ropewalk.consistency.values import at, require, rising


def check_road(config: Config) -> None:
    road = config.road
    require(
        road.second_target > road.first_target,
        f"road.second_target must be above road.first_target, found {road.second_target} and {road.first_target}",
    )
    for name, target in (("first", road.first_target), ("second", road.second_target)):
        key = f"road.search_{name}.lengths"
        lengths = at(config, key)
        rising(key, lengths)
        require(lengths[-1] == target, f"{key} must end at road.{name}_target {target}, found {lengths}")
    require(
        road.search_second.lengths[0] > road.first_target,
        f"road.search_second.lengths must lie above road.first_target {road.first_target}, "
        f"found {road.search_second.lengths}",
    )
    rising("road.recover.lengths", road.recover.lengths)
    require(
        road.recover.lengths[-1] < road.first_target,
        f"road.recover.lengths must lie below road.first_target {road.first_target}, found {road.recover.lengths}",
    )
    for name in ("search_first", "search_second", "recover"):
        target_config: SearchTargetConfig = getattr(road, name)
        for part in ("trials", "gradient_steps"):
            values = getattr(target_config, part)
            require(
                values is None or (len(values) == len(target_config.lengths) and min(values) >= 0),
                f"road.{name}.{part} must hold a number from 0 for each of road.{name}.lengths "
                f"{target_config.lengths}, found {values}",
            )


def check_search(config: Config) -> None:
    search = config.search
    require(
        search.parents <= search.initial,
        f"search.parents must not be above search.initial, found {search.parents} and {search.initial}",
    )
    lowest_highest = search.attention_factor
    require(
        lowest_highest is None or (len(lowest_highest) == 2 and 0 < lowest_highest[0] <= lowest_highest[1]),
        f"search.attention_factor must be the lowest and the highest, found {lowest_highest}",
    )
    for key, lengths in (("fitness.lengths", search.fitness.lengths), ("race.shorter", search.race.shorter)):
        require(
            all(0 < share <= 1 for share in lengths),
            f"search.{key} must be shares of the target length above 0 and up to 1, found {lengths}",
        )
    require(
        1.0 not in search.race.shorter,
        f"search.race.shorter must be shares below 1, found {search.race.shorter}; all is read after them anyway",
    )
    require(
        not (search.fitness.needles and search.race.shorter),
        "search.race.shorter must be empty with search.fitness.needles, whose answers stand at the documents' ends, "
        f"found {search.race.shorter}",
    )
    require(
        1.0 in search.fitness.lengths,
        f"search.fitness.lengths must hold 1.0, the target length itself, found {search.fitness.lengths}",
    )
    weights = search.fitness.weights
    require(
        len(weights) == len(search.fitness.lengths) >= 1 and min(weights) > 0,
        f"search.fitness.weights must hold a positive weight for each of search.fitness.lengths "
        f"{search.fitness.lengths}, found {weights}",
    )
    require(
        search.storage is None or "://" not in search.storage or urlsplit(search.storage).password is None,
        "search.storage must not hold a password, which would be recorded with the run; put it into PGPASSWORD or "
        "~/.pgpass",
    )
    require(0 < search.race.p_value < 1, f"search.race.p_value must lie between 0 and 1, found {search.race.p_value}")
    road = config.road
    own = [target.documents for target in (road.search_first, road.search_second, road.recover)]
    pairs = search.race.blocks * min(documents or search.documents for documents in own)
    require(
        search.race.blocks == 0 or pairs >= 32,
        "search.race.blocks times the documents of each search must be at least 32, or the test cannot fire early, "
        f"found {pairs}",
    )
