// This file lets nofile.go declare a function without a body (go:linkname).
