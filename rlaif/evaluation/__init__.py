"""Was it worth it? Comparisons of a model before and after tuning."""
