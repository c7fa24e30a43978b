"""Texts of data sets, cleaned as evaluations of them usually do."""

import re


def hellaswag_text(text: str) -> str:
    """A text of HellaSwag without the marks of the pages it came from.

    Example:
      >>> hellaswag_text(" [header] How to bake [title] Mix it. [step] Stir.")
      ' How to bake. Mix it. Stir.'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
