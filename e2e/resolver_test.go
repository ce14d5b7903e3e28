package e2e

import "testing"

// On a network of the user's making Docker serves names at 127.0.0.11 inside the container's network namespace, which a
// guest's own loopback hides: boxlite relays.
func TestNamesOnUserDefinedNetwork(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.ok("network", "create", "--subnet", "10.198.3.0/24", "named")
		e.startReady("listening", "--network", "named", "--name", e.rt.name+"-server", "--network-alias", "api", "busybox", "probe", "serve", "tcp", ":7")
		id := e.start("--network", "named", "busybox", "sleep", "1000")
		e.want("resolv.conf", e.exec(id, "sh", "-c", "grep nameserver /etc/resolv.conf"), "nameserver 127.0.0.11")
		for _, name := range []string{e.rt.name + "-server", "api"} {
			e.want("dial of "+name, e.exec(id, "probe", "dial", "tcp", name+":7", "by name"), "by name")
		}
		r := e.docker("exec", id, "nslookup", "no-such-name")
		e.wantCode(r, 1)
		// Several at once, from both sides of a restart.
		e.want("eight at once", e.exec(id, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do nslookup api >/dev/null & done; wait; echo done"), "done")
	})
}
