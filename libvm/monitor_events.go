package libvm

import (
	"net"
	"sync"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
)

// oomCount is how often the guest's kernel has killed a process of the container
// for lack of memory, as the guest says.
type oomCount struct {
	bell *hostcgroup.OOMBell // nil where the host has no memory cgroup

	mu      sync.Mutex
	kills   uint64
	changed chan struct{} // closed and replaced when kills has changed
}

func (o *oomCount) read() (kills uint64, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.kills, o.changed
}

// raise sets the count to at least kills.
func (o *oomCount) raise(kills uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if kills <= o.kills {
		return
	}
	o.kills = kills
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// oomInterval is the least time between two questions, whatever the guest says.
const oomInterval = 100 * time.Millisecond

// watchOOM keeps the count until the VM has ended.
func (m *tenant) watchOOM() {
	for {
		seen, _ := m.oom.read()
		var r guestproto.OOMReply
		if err := m.guest.call(guestproto.OpOOM, guestproto.OOMRequest{Seen: seen}, &r, untilTheEnd); err != nil {
			m.log.Debug("watch for lack of memory", "error", err)
			return
		}
		m.oom.raise(r.Kills)
		time.Sleep(oomInterval)
	}
}

// sendEvents tells a connection of the container's events until its end.
func (m *tenant) sendEvents(conn *net.UnixConn) error {
	seen, _ := m.oom.read()
	if err := (controlReply{}).send(conn); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1)) // nothing is said: it returns when the other end has gone
	}()
	for {
		kills, changed := m.oom.read()
		if kills > seen {
			seen = kills
			if err := guestproto.WriteFrame(conn, eventMessage{Event: EventOOM}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-gone:
			return nil
		case <-m.lost:
			return nil
		case <-m.ended:
			if kills, _ := m.oom.read(); kills <= seen {
				return nil
			}
		}
	}
}

// openOOMBell must be called before the monitor leaves the host's file systems.
func (m *tenant) openOOMBell(memoryCgroup string) {
	if memoryCgroup == "" {
		return
	}
	var err error
	if m.oom.bell, err = hostcgroup.OpenOOMBell(memoryCgroup); err != nil {
		m.log.Debug("lack of memory in the guest will not show on the host", "error", err)
	}
}

// reportOOM shows the host that the guest's kernel has killed for lack of memory.
// It does so when the container has ended and the VM is gone. Only the monitor is
// in the cgroup then, and the callers that watch the cgroup ask only now whether it
// ran out of memory.
func (m *tenant) reportOOM() {
	kills, _ := m.oom.read()
	if kills == 0 || m.oom.bell == nil {
		return
	}
	m.vmm.Kill()
	if err := m.oom.bell.Ring(); err != nil {
		m.log.Debug("lack of memory in the guest does not show on the host", "error", err)
	}
}
