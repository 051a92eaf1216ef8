"""Text in, packed batches out: corpus → tokenizer → shards → batches. Needs no PyTorch."""
