//go:build !amd64

package tsc

const present = false

func counter() uint64 { return 0 }
