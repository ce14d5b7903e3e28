package e2e

import (
	"path/filepath"
	"testing"
)

// Debian with systemd as the container init, and Podman in it.
func TestSystemdAndPodman(t *testing.T) {
	eachVM(t, func(e *env) {
		e.patient()
		port := e.echoServer(e.d.gateway)
		args := []string{"--privileged", "--stop-signal", "SIGRTMIN+3", "-v", filepath.Join(workDir, "rootfs") + ":/busybox:ro"}
		if e.d.major() >= 26 { // it keeps back what dockerd itself lacks, CAP_SYS_RESOURCE here, and crun raises this limit
			args = append(args, "--ulimit", "memlock=-1")
		}
		id := e.start(append(args, e.wholeImage("machine", ""))...)
		got := e.inside(id, `
until systemctl list-units >/dev/null 2>&1; do sleep 0.2; done
state=$(systemctl is-system-running --wait || true)
echo "state=$state"
systemctl --failed --plain --no-legend | sed 's/^/failed=/'
echo "init=$(cat /proc/1/comm) $(systemctl show -p ControlGroup --value dbus.service)"
systemd-run -q --wait -p MemoryMax=16M tail /dev/zero || true
systemd-run -q --pipe --wait cat /proc/self/cgroup | sed 's/run-u[0-9]*/run-uN/; s/^/unit=/'`)
		e.wantReport(got, map[string]string{"state": "running", "init": "systemd /system.slice/dbus.service", "unit": "0::/system.slice/run-uN.service"})
		if got["failed"] != "" {
			e.Errorf("failed unit: %s", got["failed"])
		}
		got = e.inside(id, `
tar -C /busybox -c . | podman import -q - busybox >/dev/null
podman info --format 'driver={{.Store.GraphDriverName}}'
podman run --rm busybox sh -c 'echo "tcp=$(probe dial tcp `+e.d.gateway+":"+port+` hello)"'
podman run --rm --memory 16m busybox tail /dev/zero || echo "memory=$?"`)
		e.wantReport(got, map[string]string{"driver": "overlay", "tcp": "hello", "memory": "137"})

		// As systemd's own way to end a container's machine: it halts, which ends PID 1 by SIGINT (reboot(2)).
		e.ok("stop", "-t", "100", id)
		e.want("exit code", e.inspect(id, ".State.ExitCode"), "130")
	})
}
