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
	for worked := ""; ; {
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
			wait = m.forgetFiles(limit)
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

// forgetFiles has the guest forget files if it knows more than half of what
// virtiofsd can have open, and returns when to look again. The guest's number
// may be anything: a wrong one costs its own container files.
func (m *monitor) forgetFiles(limit int) time.Duration {
	var r guestproto.ForgetReply
	err := m.ask(guestproto.OpForget, guestproto.ForgetRequest{Above: limit / 2}, &r)
	if r.Before > limit/2 || err != nil {
		m.log.Debug("had the guest forget files", "before", r.Before, "after", r.After, "limit", limit, "error", err)
	}
	wait := untilNextLook(min(max(r.After, 0), limit), limit)
	if err != nil || r.After > limit/2 {
		wait = max(wait, lookAgain)
	}
	return wait
}
