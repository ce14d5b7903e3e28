// Package self starts this program again, for one of its hidden commands: the
// monitor, the process that stands for a detached exec, the keeper of a standby VM.
package self

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
)

// ArgsVar is an environment variable. A program that Command has started finds its
// real arguments there, as a JSON array. The arguments in its command line are
// those of the container's process.
const ArgsVar = "BOXLITE_ARGS"

// Command returns a command that starts this program again, with its global flags,
// for a hidden command. The process stands for one of the container's processes
// wherever the host's pids are looked at (docker top, ps). So it shows that
// process's command line, which is shown. Its name stays boxlite.
func Command(global, shown []string, command ...string) (*exec.Cmd, error) {
	args, err := json.Marshal(slices.Concat(global, command))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{"boxlite"}, command...)
	if len(shown) > 0 {
		cmd.Args = firstArgs(shown)
	}
	cmd.Env = append(os.Environ(), ArgsVar+"="+string(args))
	return cmd, nil
}

// mostShown bounds a command line that is shown, in bytes. The kernel takes 128 KiB in any
// case, environment included, and no single argument that is longer. What the
// container's process may have is for the guest's kernel to say.
const mostShown = 64 << 10

// firstArgs are the arguments that fit; the last one may be cut off.
func firstArgs(args []string) []string {
	room := mostShown
	for i, arg := range args {
		if room -= len(arg) + 1; room < 0 {
			return append(slices.Clone(args[:i]), arg[:max(0, len(arg)+room)]+"...")
		}
	}
	return args
}
