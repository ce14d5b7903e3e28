package libvm

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/hostnet"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

const (
	// settleTime is how long the namespace must have been quiet before it is looked
	// at: who connects a network makes many changes, one after the other.
	settleTime = 100 * time.Millisecond
	// settleLimit is how long changes that do not end can put the look off.
	settleLimit = time.Second
	// followTries is how often what has failed is tried again, after a second first and
	// after twice as long each time, while nothing changes in the namespace.
	followTries = 6
)

// follow carries what changes in the network namespace into the running container,
// until its end. During a pause it waits.
func (m *monitor) follow() {
	if m.net.watch == nil {
		return
	}
	changes := m.net.watch.Changes()
	var again <-chan time.Time
	tries, warned := 0, ""
	for {
		due := false
		select {
		case _, open := <-changes:
			if !open || !calmDown(changes) {
				return
			}
		case <-again:
			due = true
		case <-m.own.ended:
			return
		case <-m.lost:
			return
		}
		if !m.paused.gate.await(m.own.ended) {
			return
		}
		if !m.paused.gate.enter(nil) {
			again = time.After(0) // it is paused again
			continue
		}
		news, err := m.net.sync(m.vmm, m.guest, due)
		m.paused.gate.leave()
		switch {
		case err == nil:
			again, tries, warned = nil, 0, ""
			continue
		case news:
			tries = 0
		case !due:
			continue // the timer runs
		}
		if text := err.Error(); text != warned {
			m.log.Warn("the container's network is not that of its namespace", "error", err)
			warned = text
		}
		if again = nil; tries < followTries {
			again = time.After(time.Second << tries)
		}
		tries++
	}
}

// calmDown returns when there are no changes any more, or have been for long. False
// says that there will be none.
func calmDown(changes <-chan struct{}) bool {
	limit := time.After(settleLimit)
	for {
		select {
		case _, open := <-changes:
			if !open {
				return false
			}
		case <-time.After(settleTime):
			return true
		case <-limit:
			return true
		}
	}
}

// sync makes the VM's network that of the namespace. It goes on behind what fails, and
// says all that did. What has failed is tried again if the namespace has changed
// since, which news says, or if that is due.
func (n *network) sync(v *vmm.VM, g *guest, due bool) (news bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false, nil
	}
	found, err := hostnet.Look(nil, n.connected()...)
	if err != nil {
		return false, fmt.Errorf("read the network namespace: %w", err)
	}
	found.DNSRelay = usesDockerResolver()
	if news = !reflect.DeepEqual(found, n.found); !news && (n.failed == nil || !due) {
		return false, n.failed
	}
	n.found = found
	errs := slices.Clone(found.Refused)
	if err := tooMany(&found); err != nil {
		errs = append(errs, err)
		found.Interfaces, found.Indices = found.Interfaces[:vmm.MaxInterfaces], found.Indices[:vmm.MaxInterfaces]
	}
	errs = append(errs, n.takeAway(v, g, &found), n.add(v, &found), n.refresh(&found), n.configure(g, &found))
	n.failed = errors.Join(errs...)
	return news, n.failed
}

// connected are the indices of the interfaces that have a NIC.
func (n *network) connected() (indices []int) {
	for _, c := range n.nics {
		if !c.cut {
			indices = append(indices, c.index)
		}
	}
	return indices
}

// takeAway takes the NICs away whose interfaces have gone, or are other ones now.
func (n *network) takeAway(v *vmm.VM, g *guest, found *hostnet.Found) error {
	var errs []error
	tell := false
	for _, c := range n.nics {
		place := slices.Index(found.Indices, c.index)
		if place >= 0 && c.is(c.index, found.Interfaces[place]) {
			c.iface = found.Interfaces[place] // its name may be another
			continue
		}
		if !c.cut {
			name := c.iface.Name
			if place >= 0 {
				name = found.Interfaces[place].Name
			}
			err := hostnet.Detach(nil, name, n.id)
			err = errors.Join(err, v.CutOff(c.NIC), c.tap.Down(nil))
			if c.cut = err == nil; err != nil {
				errs = append(errs, fmt.Errorf("cut interface %s off: %w", c.iface.Name, err))
			}
		}
		tell = tell || !c.told
	}
	if tell {
		if err := n.configure(g, found); err != nil {
			errs = append(errs, err) // the device goes all the same
		} else {
			for _, c := range n.nics {
				c.told = c.told || c.cut
			}
		}
	}
	return errors.Join(append(errs, n.unplug(v))...)
}

// unplug takes the devices away of which no function is in use any more, and then
// their taps: a QEMU from 10.0 on has a tap as long as the device, whatever CutOff
// does, and aborts where the guest resets a device without one.
func (n *network) unplug(v *vmm.VM) error {
	devices := map[int][]*nic{}
	for _, c := range n.nics {
		devices[c.Port] = append(devices[c.Port], c)
	}
	var errs []error
	for port, functions := range devices {
		if slices.ContainsFunc(functions, func(c *nic) bool { return !c.cut }) {
			continue
		}
		var nics []vmm.NIC
		for _, c := range functions {
			nics = append(nics, c.NIC)
		}
		if err := v.Unplug(nics); err != nil {
			errs = append(errs, fmt.Errorf("the device of interface %s, which has gone, stays in the VM: %w", functions[0].iface.Name, err))
			continue
		}
		for _, c := range functions {
			errs = append(errs, n.removeTap(c))
		}
		n.nics = slices.DeleteFunc(n.nics, func(c *nic) bool { return c.Port == port })
		n.ports = append(n.ports, port)
	}
	return errors.Join(errs...)
}

// add plugs a device in for each interface that has come. Those for which no port is
// left share the last one.
func (n *network) add(v *vmm.VM, found *hostnet.Found) error {
	if len(n.ports) == 0 {
		if p := n.present(found); len(p.Interfaces) < len(found.Interfaces) {
			return errors.New("the VM has no slot left for another network, until one goes")
		}
		return nil
	}
	more, err := n.attach(found)
	errs := []error{err}
	for len(more) > 0 {
		together := 1
		if len(n.ports) == 1 {
			together = len(more)
		}
		errs = append(errs, n.plugDevice(v, more[:together]))
		more = more[together:]
	}
	return errors.Join(errs...)
}

// refresh brings the taps up to date with addresses and with Docker's resolver.
func (n *network) refresh(found *hostnet.Found) error {
	var errs []error
	var names []string
	for _, c := range n.nics {
		if !c.cut {
			names = append(names, c.iface.Name)
			errs = append(errs, c.tap.Update(nil, c.iface.Name, n.options(found.DNSRelay)))
		}
	}
	return errors.Join(append(errs, hostnet.Prune(nil, names))...)
}

// networkPatience is how long a guest may take for changes of its network.
const networkPatience = 20 * time.Second

// configure tells the guest what its NICs shall look like, if it does not know.
// Interfaces without one are left out.
func (n *network) configure(g *guest, found *hostnet.Found) error {
	wanted, err := n.complete(n.present(found), g)
	if err != nil || reflect.DeepEqual(n.configured, wanted) {
		return err
	}
	if err := g.call(guestproto.OpNetwork, wanted, nil, within(networkPatience)); err != nil {
		return err
	}
	n.configured = wanted
	return nil
}

// present is what was found without the interfaces that have no NIC.
func (n *network) present(found *hostnet.Found) *hostnet.Found {
	p := &hostnet.Found{}
	p.DNSRelay = found.DNSRelay
	has := map[string]bool{}
	for i, iface := range found.Interfaces {
		if slices.ContainsFunc(n.nics, func(c *nic) bool { return c.is(found.Indices[i], iface) }) {
			p.Interfaces, p.Indices, has[iface.Name] = append(p.Interfaces, iface), append(p.Indices, found.Indices[i]), true
		}
	}
	for _, r := range found.Routes {
		if has[r.Interface] {
			p.Routes = append(p.Routes, r)
		}
	}
	for _, neighbour := range found.Neighbours {
		if has[neighbour.Interface] {
			p.Neighbours = append(p.Neighbours, neighbour)
		}
	}
	return p
}
