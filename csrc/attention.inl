// Attention that never stores its scores. Included by unit.inl, once per instruction set.
