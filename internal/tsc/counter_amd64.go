package tsc

// counter is RDTSC, once all that comes before it is done.
func counter() uint64
