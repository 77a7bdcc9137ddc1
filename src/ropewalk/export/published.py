"""Published scalings under the name they had first; `ropewalk.models.published` holds them."""

from ropewalk.models.published import PublishedScaling, published_scaling, published_table

__all__ = ["PublishedScaling", "published_scaling", "published_table"]
