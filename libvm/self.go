package libvm

import (
	"encoding/json"
	"os"
	"os/exec"
)

// ArgsVar is the environment variable in which the program, started by itself,
// finds its arguments: a JSON array. Those it shows are the container's.
const ArgsVar = "BOXLITE_ARGS"

// selfCommand starts this program again for a command of its own. The process
// stands for one of the container's wherever the host's pids are looked at
// (docker top, ps), and shows that one's command line; its name stays boxlite.
func (r *Runtime) selfCommand(shown []string, command ...string) (*exec.Cmd, error) {
	args, err := json.Marshal(r.selfArgs(command...))
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

// standIns are those of a cgroup's processes that stand for a container's: the
// monitor and each exec's. The others are below the monitor, or QEMU's keeper and
// below that; keeper is zero if there is none.
func standIns(pids []int, monitor, keeper int) []int {
	parents := map[int]int{}
	for _, pid := range pids {
		if st, err := statProcess(pid); err == nil {
			parents[pid] = st.parent
		}
	}
	var found []int
	for _, pid := range pids {
		above, alive := parents[pid]
		known := alive
		for known && above != monitor && above != keeper {
			above, known = parents[above]
		}
		if alive && !known && pid != keeper {
			found = append(found, pid)
		}
	}
	return found
}
