"""What callers leave here for later: responses, files, batches."""
