"""The rules that span several keys or sections of a configuration; a key's own rule stands beside the key."""

from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ropewalk.config import Config, FinetuneStepConfig, SourceConfig, names
from ropewalk.config.keys import check_keys, refuse

if TYPE_CHECKING:
    from ropewalk.models.capability import Capability


def check(config: Config) -> None:
    """Raise ValueError, naming the key and what is allowed, unless every value is allowed and all agree."""
    check_keys(config)
    _check_corpus(config)
    _check_extension(config)
    _check_search(config)
    if config.extension.way != "untrained":
        _check_schedule(config)
        _check_devices(config)
    _check_evaluate(config)
    check_show(config)
    cycles, rates = config.walker.cycles, config.walker.learning_rates
    if len(rates) != len(cycles):
        refuse(f"walker.learning_rates must be a number above 0 for each of the {len(cycles)} walker.cycles", rates)
    if config.model.original_length is not None:
        check_window(config, config.model.original_length)


def check_show(config: Config) -> None:
    """Raise ValueError where a table of factors is to be shown without the lengths that it is for."""
    for name in ("original_length", "target_length"):
        if config.show.table is not None and getattr(config.show, name) is None:
            refuse(f"show.{name} must be given with show.table, in tokens, found none")


def check_window(config: Config, window: int) -> None:
    """Raise ValueError unless the extension leads out of a model's window of ``window`` tokens."""
    target = config.extension.target
    if target <= window:
        refuse(f"extension.target must be above the model's window, found {target} and {window} tokens")
    for key, step in config.finetune.schedule.items():
        if config.finetune.short_share and step.length % window:
            must = f"must be a multiple of the model's window {window} where finetune.short_share is not 0"
            refuse(f"{key}.length {must}", step.length)


def check_measured(config: Config, window: int) -> None:
    """Raise ValueError unless evaluate measures what a whole pipeline claims: at the window and at the first target."""
    evaluate = config.evaluate
    for key, lengths in (("lengths", evaluate.lengths), ("base_lengths", evaluate.base_lengths)):
        for name, length in (("the model's window", window), ("extension.target", config.extension.target)):
            if length not in lengths:
                refuse(f"evaluate.{key} must hold {name} {length}", lengths)


def check_capability(config: Config, capability: "Capability") -> None:
    """Raise ValueError, with the reason, where the pipeline would do something that cannot be done with its model."""
    wanted = {
        "extended": True,
        "trained": config.extension.way != "untrained" and any(s.steps for s in config.finetune.schedule.values()),
        "exported": True,
        "written as GGUF": config.export.gguf is not None,
    }
    for what, reason in capability:
        if wanted[what] and reason is not None:
            refuse(f"model.path {config.model.path} cannot be {what}: {reason}")


def _check_corpus(config: Config) -> None:
    corpus = config.corpus
    if corpus.name == "mixture" and not corpus.sources:
        refuse("corpus.sources must name the sources of a mixture, found none")
    mixed = {f"corpus.sources.{label}": source for label, source in corpus.sources.items()}
    for key, source in mixed.items() if corpus.name == "mixture" else [("corpus", corpus)]:
        _check_source(source, key)
    if corpus.mixture_tokens is not None and not corpus.weights:
        refuse("corpus.mixture_tokens needs corpus.weights, found none")
    shares = (corpus.search_share, corpus.test_share)
    if min(shares) <= 0 or sum(shares) >= 1:
        refuse("corpus.search_share and corpus.test_share must be above 0 and together below 1", shares)
    longest = max(config.extension.second_target, *config.evaluate.lengths)
    if corpus.long_tokens < longest:
        refuse(
            f"corpus.long_tokens must not be below the longest length that is read, found {corpus.long_tokens} "
            f"and {longest}"
        )
    second = config.extension.search_second.documents or config.search.documents
    for reader, documents in (("the second search", second), ("evaluate", config.evaluate.long_documents or 1)):
        if corpus.min_long_documents < documents:
            must = f"must not be below the {documents} documents that {reader} reads"
            refuse(f"corpus.min_long_documents {must}", corpus.min_long_documents)


def _check_source(source: SourceConfig, key: str) -> None:
    for part, must in names.required_keys(source.name).items():
        if not getattr(source, part):
            refuse(f"{key}.{part} {must} when {key}.name is {source.name}, found none")
    if source.name == "redpajama_v2" and source.quality and "tail" in source.buckets:
        refuse(f"{key}.quality needs quality signals, which the bucket tail in {key}.buckets does not have")


def _check_extension(config: Config) -> None:
    extension = config.extension
    first, second = extension.target, extension.second_target
    if extension.way == "long" and second <= first:
        refuse(f"extension.second_target must be above extension.target, found {second} and {first}")
    if extension.way != "long" and second != first:
        must = f"must be extension.target {first} unless extension.way is long, found {second}"
        refuse(f"extension.second_target {must}; take extension=long")
    stages = {name: getattr(extension, name) for name in ("search_first", "search_second", "recover")}
    goals = {"search_first": ("target", first)}
    if extension.way == "long":
        goals["search_second"] = ("second_target", second)
    for name, (key, target) in goals.items():
        lengths = stages[name].lengths
        if not lengths or lengths[-1] != target:
            refuse(f"extension.{name}.lengths must end at extension.{key} {target}", lengths)
    lengths = extension.search_second.lengths
    if lengths and lengths[0] <= first:
        refuse(f"extension.search_second.lengths must lie above extension.target {first}", lengths)
    lengths = extension.recover.lengths
    if not lengths or lengths[-1] >= first:
        refuse(f"extension.recover.lengths must lie below extension.target {first}", lengths)
    for name, stage in stages.items():
        for part, values in (("trials", stage.trials), ("gradient_steps", stage.gradient_steps)):
            if values is not None and len(values) != len(stage.lengths):
                must = f"must hold a number from 0 for each of extension.{name}.lengths {stage.lengths}"
                refuse(f"extension.{name}.{part} {must}", values)
    blocks = config.search.race.blocks
    documents, name = min((stage.documents or config.search.documents, name) for name, stage in stages.items())
    if 0 < blocks * documents < 32:
        refuse(
            "search.race.blocks times the documents of each search must be at least 32, or the test cannot fire early, "
            f"found {blocks * documents} in extension.{name}"
        )


def _check_search(config: Config) -> None:
    search, fitness = config.search, config.search.fitness
    if search.num_parents > search.initial_population:
        refuse(
            "search.num_parents must not be above search.initial_population, "
            f"found {search.num_parents} and {search.initial_population}"
        )
    if fitness.needles and search.race.shorter:
        must = "must be empty with search.fitness.needles, whose answers stand at the documents' ends"
        refuse(f"search.race.shorter {must}", search.race.shorter)
    if len(fitness.weights) != len(fitness.lengths):
        must = f"must hold a positive weight for each of search.fitness.lengths {fitness.lengths}"
        refuse(f"search.fitness.weights {must}", fitness.weights)
    # Not a rule beside the key, whose message would tell the password.
    if search.storage is not None and "://" in search.storage and urlsplit(search.storage).password is not None:
        refuse(
            "search.storage must not hold a password, which would be recorded with the run; put it into PGPASSWORD or "
            "~/.pgpass"
        )


def _check_schedule(config: Config) -> None:
    finetune, target = config.finetune, config.extension.target
    if finetune.long_document_share and not (finetune.across_documents or config.corpus.across_documents):
        needs = (
            "needs finetune.across_documents or corpus.across_documents, without which every row is from one document"
        )
        refuse(f"finetune.long_document_share {needs}", finetune.long_document_share)
    for key, step in finetune.schedule.items():
        _check_step(config, key, step)
    if finetune.second.scaling_length not in (None, target):
        must = f"must be extension.target {target}, which the later stages take its result for"
        refuse(f"finetune.second.scaling_length {must}", finetune.second.scaling_length)
    for (key, step), (next_key, next_step) in pairwise(finetune.schedule.items()):
        if step.length > next_step.length:
            refuse(
                f"{key}.length must not be above {next_key}.length, found {step.length}, {next_step.length}; "
                "a schedule must not shrink"
            )
    longest = finetune.second.length
    if longest > target:
        refuse(f"finetune.second.length must not be above extension.target, found {longest} and {target}")


def _check_step(config: Config, key: str, step: FinetuneStepConfig) -> None:
    # The second stage may have nothing to do: it then passes the first one's model on.
    if step.steps < 1 and key != "finetune.second":
        refuse(f"{key}.steps must be at least 1", step.steps)
    if step.subsets and config.finetune.across_documents:
        refuse(f"{key}.subsets does not go with finetune.across_documents, found {step.subsets}; give one of them")
    lengths = config.extension.search_first.lengths
    if step.scaling == "searched" and step.scaling_length not in (None, *lengths):
        refuse(f"{key}.scaling_length must be among extension.search_first.lengths {lengths}", step.scaling_length)
    size = config.finetune.micro_batch_size
    if size is not None and size < step.batch_size and step.batch_size % size:
        refuse(f"finetune.micro_batch_size must divide {key}.batch_size {step.batch_size}", size)


def _check_devices(config: Config) -> None:
    parallel, finetune = config.parallel, config.finetune
    count = parallel.devices * parallel.nodes
    if count > 1 and parallel.strategy == "single_device":
        refuse(f"parallel.strategy must be ddp or fsdp for several devices, found single_device and {count} devices")
    if count % parallel.context:
        refuse(
            f"parallel.context must divide parallel.devices times parallel.nodes, found {parallel.context} and {count}"
        )
    for key, masks in (
        ("finetune.short_share", finetune.short_share),
        ("model.keep_sliding_window", config.model.keep_sliding_window),
    ):
        if masks and parallel.attention == "ring":
            refuse(f"{key} needs masks, which parallel.attention=ring does not know, found {masks}; take auto")
    if finetune.long_context_weight is not None and parallel.context > 1:
        needs = "needs whole rows on a device, which parallel.context=1 gives"
        refuse(f"finetune.long_context_weight {needs}", f"parallel.context={parallel.context}")
    if parallel.strategy == "fsdp":
        allowed = ("auto", "32-true", "bf16-mixed")
        if finetune.precision not in allowed:
            refuse(f"finetune.precision must be one of {', '.join(allowed)} under fsdp", finetune.precision)
        if finetune.optimizer == "adamw_8bit":
            refuse(
                "finetune.optimizer must be adamw or adamw_fused under fsdp, which splits what it keeps", "adamw_8bit"
            )
    groups = count // parallel.context
    # Twice, since a device holds one slice of a row's first half and one of its second, for even work.
    slices = 2 * parallel.context if parallel.context > 1 else 1
    for key, step in finetune.schedule.items():
        if step.batch_size % groups:
            refuse(
                f"{key}.batch_size must be a multiple of the {groups} groups of devices that read rows of their own "
                "(parallel.devices times parallel.nodes over parallel.context)",
                step.batch_size,
            )
        if step.length % slices:
            refuse(f"{key}.length must be a multiple of {slices}, twice parallel.context", step.length)


def _check_evaluate(config: Config) -> None:
    evaluate, retrieval = config.evaluate, config.evaluate.retrieval
    if not set(evaluate.base_lengths) <= set(evaluate.lengths):
        refuse(f"evaluate.base_lengths must be among evaluate.lengths {evaluate.lengths}", evaluate.base_lengths)
    for kind, trials, depths in (
        ("passkey", evaluate.passkey_trials, evaluate.passkey_depths),
        ("needle", evaluate.needle_trials, evaluate.needle_depths),
    ):
        if trials < depths:
            refuse(f"evaluate.{kind}_trials must not be below evaluate.{kind}_depths, found {trials} and {depths}")
    shortest = evaluate.lengths[0]
    if evaluate.stride is not None and evaluate.stride > shortest:
        must = f"must not be above the shortest of evaluate.lengths {shortest}, or tokens would be left out"
        refuse(f"evaluate.stride {must}", evaluate.stride)
    longest = config.corpus.long_tokens
    for key, tasks, lengths_key, lengths in (
        ("needles", evaluate.needles, "needle_lengths", evaluate.needle_lengths or evaluate.passkey_lengths),
        ("retrieval.tasks", retrieval.tasks, "retrieval.lengths", retrieval.lengths),
    ):
        in_texts = names.needles_in_texts(tasks)
        if in_texts and max(lengths, default=0) > longest:
            must = f"must not be above corpus.long_tokens {longest} for {', '.join(in_texts)} in evaluate.{key}"
            refuse(f"evaluate.{lengths_key} {must}", lengths)
    if retrieval.lengths and not retrieval.tasks:
        refuse("evaluate.retrieval.tasks must not be empty where evaluate.retrieval.lengths are given")
