"""Questions about images: one exchange (a question, or several in turn, with accepted answers) per row of a table.

A store holds them in ``tasks.parquet``. They are derived from the objects of the images, or read from published sets
of questions and from CSV. An exchange is in the part (train, validation, test) of its image.
"""

from bitllm.data.tasks.exchange import ANSWER_TYPES, Exchange, checked, exchanges, tasks_table

__all__ = ["ANSWER_TYPES", "Exchange", "checked", "exchanges", "tasks_table"]
