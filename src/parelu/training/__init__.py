"""Training one network: schedule, batches, loop, teacher, evaluation, losses."""
