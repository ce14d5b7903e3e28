// Command load is what bench runs in a guest: in a container, or as PID 1 of a bare VM. It times work on files and on the
// network and prints a JSON object of figures on one line.
//
//	load files DIR         sequential and small-file work in DIR, where bench has put big and small.tar
//	load net ADDRESS       against bench's server
//	load stdout MIB        zeros on stdout, nothing else
//	load burst MIB         takes memory, gives it back when its stdin ends, and then sleeps
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
)

// Figures are rates in MiB/s, times in seconds, by name.
type Figures map[string]float64

func main() {
	run := command
	if os.Getpid() == 1 && len(os.Args) == 1 {
		run = func([]string) error { return bareInit() }
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want a command and its operand, not %q", args)
	}
	switch args[0] {
	case "files", "net":
		f, err := measure(args[0], args[1])
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(f)
	}
	mib, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "stdout":
		return zeros(mib)
	case "burst":
		return burst(mib)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func measure(kind, operand string) (Figures, error) {
	if kind == "net" {
		return network(operand)
	}
	return files(operand)
}
