package e2e

import (
	"os"
	"os/exec"
	"strings"
)

// shOut runs a script on the host that the cases see, and returns its output.
func (e *env) shOut(script string) string {
	e.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		e.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// addressOf finds the IPv4 address of eth0 in the network namespace of a process.
func (e *env) addressOf(pid string) string {
	e.Helper()
	return strings.TrimSpace(e.shOut("nsenter -t " + pid + " -n ip -4 -o addr show dev eth0 | awk '{print $4}' | cut -d/ -f1"))
}

// processGone says whether there is no process of that pid, or only what is left for its parent to reap.
func processGone(pid string) bool {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	return err != nil || strings.Contains(string(text), ") Z ")
}
