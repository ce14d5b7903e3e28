// Command probe is what the end-to-end tests run in a container where a shell cannot show what is asked. It is built
// static, needs no file but itself, and prints findings as plain lines. A finding it did not expect ends it with 1.
package main

import (
	"fmt"
	"os"
)

// The commands, by the name that is the first argument.
var commands = map[string]func(args []string) error{
	"gen":       gen,
	"sum":       sum,
	"mmap":      mmapShared,
	"mmapheld":  mmapHeld,
	"change":    change,
	"look":      look,
	"flock":     flock,
	"fcntl":     fcntlLock,
	"fcntl-try": fcntlTry,
	"xattr":     xattr,
	"attrs":     attributes,
	"many":      many,
	"watch":     watch,
	"watched":   watched,
	"tmpfile":   tmpfile,
	"hog":       hog,
	"reserve":   reserve,
	"fork":      fork,
	"tty":       tty,
	"signals":   signals,
	"serve":     serve,
	"dial":      dial,
	"echo-sum":  echoSum,
	"dial-many": dialMany,
	"loopback":  loopback,
	"linger":    linger,
	"flood":     flood,
	"datagram":  datagram,
	"pass":      pass,
	"syscall":   trySyscall,
	"inherited": inherited,
	"clock":     clock,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "probe: unknown command", os.Args[1:])
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "probe %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
