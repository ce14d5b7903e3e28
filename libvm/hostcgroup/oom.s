// This file lets oom.go declare functions without a body (go:linkname).
