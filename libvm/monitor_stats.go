package libvm

import (
	"errors"
	"fmt"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// checkStats bounds what a guest says.
func checkStats(r *guestproto.StatsReply) error {
	if len(r.Memory.Detail) > maxDetails {
		return fmt.Errorf("guest: stats: %d details of memory", len(r.Memory.Detail))
	}
	for name := range r.Memory.Detail {
		if len(name) > maxDetailName || !validID.MatchString(name) {
			return fmt.Errorf("guest: stats: detail of memory called %.80q", name)
		}
	}
	return nil
}

// stats asks the guest, or remembers what a pause found.
func (m *tenant) stats() (*guestproto.StatsReply, error) {
	if !m.paused.gate.enter(nil) {
		if last := m.paused.stats.Load(); last != nil {
			return last, nil
		}
		return nil, errors.New("no stats: the container is paused, and the guest did not give any before")
	}
	defer m.paused.gate.leave()
	return m.guest.stats(promptly)
}

func (g *guest) stats(p patience) (*guestproto.StatsReply, error) {
	r := new(guestproto.StatsReply)
	if err := g.call(guestproto.OpStats, nil, r, p); err != nil {
		return nil, err
	}
	return r, checkStats(r)
}
