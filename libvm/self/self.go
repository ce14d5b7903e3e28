// Package self starts the program again, for a command of its own that users do not
// see: the monitor, the process of a detached exec, the keeper of a standby VM.
package self

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
)

// ArgsVar is the environment variable in which the program, started by itself,
// finds its arguments: a JSON array. Those it shows are the container's.
const ArgsVar = "BOXLITE_ARGS"

// Command starts this program again, with its global flags, for a command of its own. The process
// stands for one of the container's wherever the host's pids are looked at
// (docker top, ps), and shows that one's command line; its name stays boxlite.
func Command(global, shown []string, command ...string) (*exec.Cmd, error) {
	args, err := json.Marshal(slices.Concat(global, command))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{"boxlite"}, command...)
	if len(shown) > 0 {
		cmd.Args = shown
	}
	cmd.Env = append(os.Environ(), ArgsVar+"="+string(args))
	return cmd, nil
}
