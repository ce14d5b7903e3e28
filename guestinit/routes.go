package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// applyRoutes adds the wanted routes in order, but for those that are there since an
// earlier request, and then removes those that were wanted before and are no more.
// What the container has made of its routes by itself stays.
func (s *networkState) applyRoutes(routes []guestproto.Route, links nics) error {
	before, wanted := map[string]string{}, map[string]bool{}
	for _, route := range s.routes {
		before[routeKey(route)] = route.String()
	}
	var all []*netlink.Route
	for i := range routes {
		if links.away[routes[i].Interface] {
			continue
		}
		route, err := parseRoute(&routes[i], links)
		if err != nil {
			return err
		}
		all = append(all, route)
		wanted[routeKey(route)] = true
		if before[routeKey(route)] == route.String() && !links.fresh[route.LinkIndex] {
			continue
		}
		if routes[i].Loopback {
			if err := writeFile("/proc/sys/net/ipv4/conf/"+links.nameOf(route.LinkIndex)+"/route_localnet", "1"); err != nil {
				return err
			}
		}
		if err := s.netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add route %s: %w", describe(&routes[i]), err)
		}
	}
	for _, route := range s.routes {
		// The kernel's own come and go with the addresses.
		if wanted[routeKey(route)] || !links.has(route.LinkIndex) || route.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		if err := s.netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %v: %w", route, err)
		}
	}
	s.routes = all
	return nil
}

func describe(r *guestproto.Route) string {
	dst := r.Dst
	if dst == "" {
		dst = "default"
	}
	return fmt.Sprintf("%s via %q dev %s src %q", dst, r.Gateway, r.Interface, r.Source)
}

// routeKey is what tells routes of one table apart.
func routeKey(r *netlink.Route) string {
	family := r.Family
	dst := ""
	if r.Dst != nil {
		dst = r.Dst.String()
		family = unix.AF_INET
		if r.Dst.IP.To4() == nil {
			family = unix.AF_INET6
		}
	}
	metric := r.Priority
	if family == unix.AF_INET6 && metric == 0 {
		metric = 1024 // what the kernel makes of it
	}
	return fmt.Sprint(family, " ", dst, " ", metric, " ", r.LinkIndex)
}

// keptRouteFlags are those that say how a route is meant; the others say how it
// fared on the host.
const keptRouteFlags = unix.RTNH_F_ONLINK

// defaults are the destinations of default routes by family.
var defaults = map[int]*net.IPNet{
	4: {IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	6: {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
}

func parseRoute(r *guestproto.Route, links nics) (*netlink.Route, error) {
	index, err := links.indexOf(r.Interface)
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{
		LinkIndex: index,
		Scope:     netlink.Scope(r.Scope),
		Protocol:  netlink.RouteProtocol(r.Protocol),
		Priority:  r.Metric,
		Flags:     r.Flags & keptRouteFlags,
		Family:    unix.AF_INET,
		Table:     unix.RT_TABLE_MAIN,
	}
	if r.Family == 6 {
		route.Family = unix.AF_INET6
	}
	if r.Loopback {
		route.Table = unix.RT_TABLE_LOCAL
	}
	bad := func(what, value string) error {
		return guestproto.Errorf(guestproto.CodeBadRequest, "route %s: %s %q", describe(r), what, value)
	}
	route.Dst = defaults[r.Family]
	if route.Dst == nil {
		return nil, bad("family", fmt.Sprint(r.Family))
	}
	if r.Dst != "" {
		if _, route.Dst, err = net.ParseCIDR(r.Dst); err != nil {
			return nil, bad("destination", r.Dst)
		}
	}
	for _, field := range []struct {
		what, text string
		to         *net.IP
	}{{"gateway", r.Gateway, &route.Gw}, {"source", r.Source, &route.Src}} {
		if field.text == "" {
			continue
		}
		if *field.to = net.ParseIP(field.text); *field.to == nil {
			return nil, bad(field.what, field.text)
		}
	}
	return route, nil
}
