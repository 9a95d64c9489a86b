"""The ground: a traced network, its sites and stages, plan and candidate, counts and steps."""
