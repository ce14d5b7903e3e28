package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// hog MIB touches that much memory and prints how far it came, in steps of 16 MiB.
func hog(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for at := 0; at < mib; at += 16 {
		m, err := unix.Mmap(-1, 0, 16<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return fmt.Errorf("mmap after %d MiB: %w", at, err)
		}
		for i := 0; i < len(m); i += 4096 {
			m[i] = 1
		}
		fmt.Println("touched", at+16)
	}
	return nil
}

// reserve MIB [TOUCH] asks for that much memory at once, and touches the first TOUCH MiB of it.
func reserve(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	m, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("mmap of %d MiB: %w", mib, err)
	}
	fmt.Println("reserved", mib)
	touch := 0
	if len(args) > 1 {
		if touch, err = strconv.Atoi(args[1]); err != nil {
			return err
		}
	}
	for i := 0; i < touch<<20; i += 4096 {
		m[i] = 1
	}
	fmt.Println("touched", touch)
	return nil
}

// fork N starts children that wait until it ends and prints how many it got before the first refusal.
func fork(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	var children []*exec.Cmd
	defer func() {
		_ = w.Close() // the children read from r, and end
		for _, c := range children {
			_ = c.Wait() // cat's status says nothing
		}
	}()
	for i := range n {
		c := exec.Command("/bin/cat")
		c.Stdin = r
		if err := c.Start(); err != nil {
			fmt.Printf("refused after %d: %v\n", i, err)
			return nil
		}
		children = append(children, c)
	}
	fmt.Println("started", n)
	return nil
}

// trySyscall NAME [ARG...] makes one system call and prints "ok" or the name of the error.
func trySyscall(args []string) error {
	numbers := map[string]uintptr{
		"personality": unix.SYS_PERSONALITY,
		"mkdir":       unix.SYS_MKDIR,
		"keyctl":      unix.SYS_KEYCTL,
		"unshare":     unix.SYS_UNSHARE,
		"setdomain":   unix.SYS_SETDOMAINNAME,
	}
	nr, ok := numbers[args[0]]
	if !ok {
		return fmt.Errorf("unknown system call %q", args[0])
	}
	var a [3]uintptr
	for i, s := range args[1:] {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			return err
		}
		a[i] = uintptr(n)
	}
	if _, _, errno := unix.Syscall(nr, a[0], a[1], a[2]); errno != 0 {
		fmt.Println(unix.ErrnoName(errno))
		return nil
	}
	fmt.Println("ok")
	return nil
}

// clock answers each line on stdin with the time, in nanoseconds since 1970.
func clock([]string) error {
	fmt.Println("clock")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(time.Now().UnixNano())
	}
	return lines.Err()
}
