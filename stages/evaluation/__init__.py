"""The scoring core behind ``stages.evaluate``: windows, scores, agreement with the teacher, statistics, report."""
