//! Kernels whose result depends on their operands alone.
