"""Selection interleaved with training: windows of the pool, judged by a proxy that learns from what was selected."""
