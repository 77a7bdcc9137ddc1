"""The settings to change where a stage runs out of memory, as far as the stage alone says which."""

from ropewalk.config import Config, SearchConfig


def search_advice(config: SearchConfig) -> str:
    """The settings to change where a search runs out of memory as it reads."""
    return (
        f"lower search.batch_tokens, found {config.batch_tokens} (a pass holds one document at least), or "
        f"search.workers, found {config.workers}, or take model.dtype=bfloat16"
    )


def stage_advice(stage: str, config: Config) -> str:
    """The settings to change where ``stage`` runs out of memory and nothing closer to the place has said which."""
    if stage in ("search_first", "search_second", "recover"):
        return search_advice(config.search)
    if stage.startswith("finetune"):
        return "take adapters with finetune.lora.rank=16, or split the weights over several devices with parallel=fsdp"
    if stage == "doctor":
        return f"lower doctor.length, found {config.doctor.length or 'none, which is the window after the scaling'}"
    if stage == "walker":
        return f"lower walker.batch_size, found {config.walker.batch_size}"
    half = "take model.dtype=bfloat16" if config.model.dtype == "float32" else "take a smaller model"
    if stage in ("evaluate", "export"):
        return f"lower evaluate.chunk_tokens, found {config.evaluate.chunk_tokens}, or {half}"
    return half if stage == "base" else "end other programs, or take a machine with more memory"
