package e2e

import "testing"

// Podman connects a running container to a network and takes it off. Debian 12's does not have runc's containers reach others
// of the new network, nor their names, so the case asks for its gateway.
func TestPodmanNetworkConnect(t *testing.T) {
	eachPodman(t, func(e *podmanEnv) {
		if e.rootless {
			return // Debian 12's fails to take networks down for an ordinary user, on runc too: "aardvark pid not found"
		}
		e.ok("network", "create", "--subnet", "10.198.8.0/24", "net1")
		e.ok("network", "create", "--subnet", "10.198.9.0/24", "net2")
		e.start("--name", "one", "--network", "net1", "--cap-add", "NET_RAW", "busybox", "sleep", "1000")
		for range 3 {
			e.ok("network", "connect", "--ip", "10.198.9.50", "net2", "one")
			e.shows("one", "10.198.9.50/24", "ip -4 -o addr show dev eth1 | awk '{print $4}'")
			e.shows("one", "1", "ping -c 1 -W 5 10.198.9.1 | grep -c ' 0% packet loss'")
			e.ok("network", "disconnect", "net2", "one")
			e.shows("one", "eth0", showLinks)
		}
	})
}
