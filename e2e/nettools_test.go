package e2e

import "testing"

// The programs that build networks, as Debian has them, in a container that may do nothing else.
func TestNetworkTools(t *testing.T) {
	eachVM(t, func(e *env) {
		e.patient()
		got := e.report("--cap-add", "NET_ADMIN", "--device", "/dev/net/tun", "--entrypoint", "bash", e.wholeImage("dind", ""), "-c", `
ok() { echo "$1=ok"; }
for kind in legacy nft; do
	for family in iptables ip6tables; do
		tables=$family-$kind
		$tables -N OWN &&
		$tables -A OWN -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment mine -j ACCEPT &&
		$tables -A OWN -p tcp -m multiport --dports 80,443 -m limit --limit 5/s -j LOG --log-prefix mine &&
		$tables -t mangle -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu &&
		$tables -A OWN -j REJECT &&
		$tables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8080 -j REDIRECT --to-ports 80 &&
		$tables -t nat -A POSTROUTING ! -o br0 -j MASQUERADE &&
		$tables -t raw -A PREROUTING -p udp -j NOTRACK && $tables -t mangle -A PREROUTING -j MARK --set-mark 7 && ok $tables
	done
	iptables-$kind -t nat -A PREROUTING -p tcp --dport 8081 -j DNAT --to-destination 192.0.2.1:80 && ok dnat-$kind
done
nft -f - <<END && ok nft
table inet own {
	set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
	map ports { type inet_service : verdict; elements = { 22 : accept, 23 : drop } }
	chain in {
		type filter hook input priority 10; policy accept;
		ct state established accept; ip saddr @blocked drop; tcp dport vmap @ports; limit rate 5/second counter log prefix "own";
	}
	chain nat { type nat hook postrouting priority 100; oifname "br0" masquerade; }
}
END
ipset create own hash:net && ipset add own 192.0.2.0/24 && iptables-nft -A OWN -m set --match-set own src -j DROP && ok ipset
ipvsadm -A -t 192.0.2.9:80 -s rr && ipvsadm -a -t 192.0.2.9:80 -r 192.0.2.10:80 -m && ipvsadm -L -n | grep -q 192.0.2.10 && ok ipvs
ip link add br0 type bridge vlan_filtering 1 && ip link add v0 type veth peer name v1 && ip link set v0 master br0 && ip link set br0 up && ip link set v0 up && ip link set v1 up && ok bridge
ip link add x0 type vxlan id 42 dstport 4789 dev eth0 && ip link set x0 master br0 && ok vxlan
ip link add m0 link eth0 type macvlan mode bridge && ip link set m0 up && ok macvlan
ip link add i0 link v1 type ipvlan mode l2 && ok ipvlan
ip link add link br0 name br0.5 type vlan id 5 && ok vlan
ip link add w0 type wireguard && wg genkey | wg set w0 private-key /dev/stdin listen-port 51820 && ip addr add 10.9.0.1/24 dev w0 && ip link set w0 up && wg show w0 listen-port | grep -q 51820 && ok wireguard
ip tuntap add dev t0 mode tun && ip link set t0 up && ok tun
tc qdisc add dev v1 root tbf rate 1mbit burst 32kbit latency 400ms && ok tc
ip rule add fwmark 7 table 100 && ip route add default via 192.0.2.1 dev br0 onlink table 100 && ok policy-routing
`)
		for _, what := range []string{
			"iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft", "dnat-legacy", "dnat-nft", "nft", "ipset", "ipvs",
			"bridge", "vxlan", "macvlan", "ipvlan", "vlan", "wireguard", "tun", "tc", "policy-routing",
		} {
			e.want(what, got[what], "ok")
		}
	})
}
