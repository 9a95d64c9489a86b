"""Linear layers merged where that is exact or pays."""
