"""The progress bar of prepare: documents, tokens kept, MB/s, time left and rejected rows."""

from types import TracebackType
from typing import Any

from ropewalk.progress import Progress


class PrepareProgress:
    """A bar that counts the bytes of the files while they are read, then those of the text while it is tokenised."""

    def __init__(self, size: int) -> None:
        self._size, self._documents, self._rejected, self._tokens = size, 0, 0, 0
        # Tokenising counts as much as reading until the amount of text is known.
        self._bar = Progress(total=2 * size or None, desc="reading", unit="B", unit_scale=True)

    def __enter__(self) -> "PrepareProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def read(self, about: dict[str, Any]) -> None:
        """Count a part that was read."""
        self._documents += about["documents"]
        self._rejected += sum(about["rejected"].values())
        self._show(about["read"])

    def begin_tokenising(self, text_bytes: int) -> None:
        self._bar.set_description_str("tokenising", refresh=False)
        self._bar.total = self._bar.n + text_bytes

    def tokenised(self, about: dict[str, Any]) -> None:
        """Count a part that was tokenised."""
        self._tokens += sum(about["tokens"].values())
        self._show(about["text_bytes"])

    def _show(self, size: int) -> None:
        self._bar.set_postfix_str(
            f"{self._documents:,} documents, {self._tokens:,} tokens kept, {self._rejected:,} rejected", refresh=False
        )
        self._bar.update(size)
