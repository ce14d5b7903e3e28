package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/e2e/stream"
)

// gen SEED SIZE writes a stream to stdout.
func gen(args []string) error {
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{os.Stdout}, stream.NewReader(seed, size), make([]byte, 256<<10))
	return err
}

// sum reads stdin to its end and prints its size and sum.
func sum([]string) error {
	s, err := stream.Sum(os.Stdin)
	fmt.Println(s)
	return err
}

// tty prints the size of the terminal on stdin, then each new size as it changes, and ends when a line arrives.
func tty([]string) error {
	winch := make(chan os.Signal, 8)
	signal.Notify(winch, syscall.SIGWINCH)
	size := func() error {
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return fmt.Errorf("size of the terminal: %w", err)
		}
		fmt.Printf("size %d %d\n", ws.Row, ws.Col)
		return nil
	}
	if err := size(); err != nil {
		return err
	}
	line := make(chan error, 1)
	go func() {
		var word string
		_, err := fmt.Scanln(&word)
		line <- err
	}()
	for {
		select {
		case <-winch:
			if err := size(); err != nil {
				return err
			}
		case err := <-line:
			return err
		}
	}
}

// signals prints "ready", then the name of each signal it receives; TERM ends it with 5.
func signals([]string) error {
	got := make(chan os.Signal, 32)
	signal.Notify(got, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGTERM, syscall.SIGCONT, syscall.SIGWINCH, syscall.Signal(40))
	fmt.Println("ready")
	for s := range got {
		name := unix.SignalName(s.(syscall.Signal))
		if name == "" {
			name = fmt.Sprintf("signal %d", s)
		}
		fmt.Println(name)
		if s == syscall.SIGTERM {
			os.Exit(5)
		}
	}
	return nil
}

// inherited prints the numbers of the open file descriptors from 3 up that the program was started with.
func inherited([]string) error {
	for fd := 3; fd < 100; fd++ {
		// The Go runtime opens its own (epoll, eventfd) close-on-exec; what was inherited is not.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fmt.Println(fd)
		}
	}
	return nil
}
