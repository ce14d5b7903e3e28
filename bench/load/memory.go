package main

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// zeros writes to stdout in pieces of a pipe's size.
func zeros(n int) error {
	buf := make([]byte, 64<<10)
	for range n * mib / len(buf) {
		if _, err := os.Stdout.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// burst takes n MiB, says so, gives them back when stdin ends, and sleeps until it is killed.
func burst(n int) error {
	taken, err := unix.Mmap(-1, 0, n*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for i := 0; i < len(taken); i += os.Getpagesize() {
		taken[i] = 1
	}
	if _, err := os.Stdout.WriteString("taken\n"); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := unix.Munmap(taken); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return nil
}
