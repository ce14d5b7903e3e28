package libvm

import (
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// virtiofsd keeps a descriptor for every file that the guest's kernel knows. The
// kernel knows a file until it is short of memory. By then virtiofsd may have come
// to its limit, and opening and closing files fails (EMFILE, EBADF). So the monitor
// makes the guest forget the files that nobody uses, well before the limit.
//
// Only the guest can count these files cheaply. Asking an emulated guest costs a
// hundred times what a look at virtiofsd costs the host. Therefore the monitor
// looks first: at the size that virtiofsd's table of descriptors has grown to, and
// at whether virtiofsd has done anything since.

// filesPerSecond is faster than a guest can look files up.
const filesPerSecond = 50_000

// Bounds on the time between two looks, and the least between two when forgetting
// did not help: the files are in use.
const (
	lookSoonest = 20 * time.Millisecond
	lookLatest  = 10 * time.Second
	lookAgain   = 500 * time.Millisecond
)

// untilNextLook is how long no guest takes to come to the limit.
func untilNextLook(open, limit int) time.Duration {
	room := time.Duration(limit-open) * time.Second / filesPerSecond
	return min(max(room, lookSoonest), lookLatest)
}

// watchFiles keeps the number of open files below virtiofsd's limit until the VM
// ends. What is in use cannot be forgotten, as a process in the guest cannot have
// more files open than its own limit. It closes the process's files.
func (m *monitor) watchFiles(p *vmm.FileServer) {
	defer p.Close()
	limit, err := m.vmm.MaxFiles()
	if err != nil {
		return // it has ended
	}
	worked, above := "", limit/2
	for {
		table, err := p.TableSize()
		now := worked
		if err == nil && table > limit/2 { // below, it never had more files open
			now, err = p.Work()
		}
		if err != nil {
			m.log.Debug("look at virtiofsd's files", "error", err)
			return
		}
		wait := untilNextLook(min(table, limit), limit)
		switch {
		case now != worked:
			worked = now
			wait, above = m.forgetFiles(above, limit)
		case table > limit/2: // nothing has happened since
			wait = max(wait, lookAgain)
		}
		select {
		case <-m.lost:
			return
		case <-time.After(wait):
		}
	}
}

// forgetFiles has the guest forget files if it knows more than above, of the limit
// that virtiofsd can have open. It returns when to look again, and how many the guest
// may know then. The guest's number may be anything: a wrong one costs its own
// container files.
func (m *monitor) forgetFiles(above, limit int) (wait time.Duration, next int) {
	var r guestproto.ForgetReply
	err := m.own.ask(guestproto.OpForget, guestproto.ForgetRequest{Above: above}, &r)
	if r.Before > above || err != nil {
		m.log.Debug("had the guest forget files", "before", r.Before, "after", r.After, "above", above, "limit", limit, "error", err)
	}
	if err != nil {
		return lookAgain, above
	}
	known := min(max(r.After, 0), mostFiles)
	wait = untilNextLook(min(known, limit), limit)
	if known > limit/2 {
		wait = max(wait, lookAgain)
	}
	next = allowance(known, limit)
	if r.Before <= above { // it has not forgotten any
		next = min(next, above)
	}
	return wait, next
}

// mostFiles is more than a guest knows.
const mostFiles = 1 << 30

// allowance is how many files a guest may know that has forgotten all but so many,
// until it has to forget again: it loses its cached content each time. That is half of
// the room that is left. Beyond the limit, where files of other file systems must be
// among them (Debian's kernel counts these too), it is half of the limit more.
func allowance(kept, limit int) int {
	if kept >= limit {
		return kept + limit/2
	}
	return kept + (limit-kept)/2
}
