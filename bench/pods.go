package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	podFirst  = "pod: create and start of the sandbox"
	podSecond = "pod: create and start of the first member"
	podThird  = "pod: create and start of the second member"
	podAdds   = "pod: memory that a member adds"
	// processorTime is of one processor, in each second.
	processorTime = "ms/s"
)

// A pod is what containerd's CRI makes of one: a sandbox, and members in its namespaces.
type pod struct {
	h   *host
	s   subject
	ids []string // the sandbox's first
	pid int      // of the sandbox
}

// begin makes and starts the pod's next container, and says how long that took.
func (p *pod) begin(id string) (took float64, err error) {
	bundle, err := p.bundle(id)
	if err != nil {
		return 0, err
	}
	pidFile := filepath.Join(bundle, "pid")
	began := time.Now()
	if err := p.s.detached("create", "--bundle", bundle, "--pid-file", pidFile, id); err != nil {
		return 0, err
	}
	p.ids = append(p.ids, id)
	if err := p.s.detached("start", id); err != nil {
		return 0, err
	}
	took = time.Since(began).Seconds()
	if p.pid == 0 {
		text, err := os.ReadFile(pidFile)
		if err != nil {
			return 0, err
		}
		p.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return took, err
	}
	return took, nil
}

// bundle is for a container that sleeps, in the sandbox's namespaces if there is one.
func (p *pod) bundle(id string) (string, error) {
	dir, err := p.h.bundle(id, "sleep", "3600")
	if err != nil {
		return "", err
	}
	return dir, editSpec(dir, func(spec *specs.Spec) {
		kind, sandbox := "sandbox", id
		if p.pid != 0 {
			kind, sandbox = "container", p.ids[0]
			for i := range spec.Linux.Namespaces {
				switch ns := &spec.Linux.Namespaces[i]; ns.Type {
				case specs.NetworkNamespace:
					ns.Path = fmt.Sprintf("/proc/%d/ns/net", p.pid)
				case specs.IPCNamespace, specs.UTSNamespace:
					ns.Path = fmt.Sprintf("/proc/%d/ns/%s", p.pid, ns.Type)
				}
			}
		}
		spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox}
	})
}

// end removes the pod.
func (p *pod) end() error {
	for i := len(p.ids) - 1; i >= 0; i-- {
		if err := p.s.detached("delete", "--force", p.ids[i]); err != nil {
			return err
		}
	}
	return nil
}

// pss is what all of the pod's processes on the host have.
func (p *pod) pss() (sum float64, err error) {
	for _, id := range p.ids {
		one, err := p.h.pss(id)
		if err != nil {
			return 0, err
		}
		sum += one
	}
	return sum, nil
}

// ticks is the processors' time that the pod's processes on the host have taken, in hundredths of a second.
func (p *pod) ticks() (sum int, err error) {
	for _, id := range p.ids {
		pids, err := p.h.pids(id)
		if err != nil {
			return 0, err
		}
		for _, pid := range pids {
			text, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil {
				return 0, err
			}
			_, rest, _ := strings.Cut(string(text), ") ") // behind the name the third field comes first
			fields := strings.Fields(rest)
			for _, field := range fields[11:13] { // utime, stime
				n, err := strconv.Atoi(field)
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

// members measures what a pod's further containers cost beside its first one, which starts from a template.
func members(h *host, n repetitions, r *result) error {
	for i := range n.hand + 1 {
		p := &pod{h: h, s: h.boxlite()}
		for k, what := range []string{podFirst, podSecond, podThird} {
			took, err := p.begin(fmt.Sprintf("bench-pod-%d-%d", i, k))
			if err != nil {
				return err
			}
			if i > 0 {
				r.add(what, warm, seconds, took)
			}
		}
		if err := p.end(); err != nil {
			return err
		}
	}
	for i := range n.memory {
		p := &pod{h: h, s: h.boxlite()}
		var before float64
		for k := range 2 {
			if _, err := p.begin(fmt.Sprintf("bench-weight-%d-%d", i, k)); err != nil {
				return err
			}
			time.Sleep(settle)
			pss, err := p.pss()
			if err != nil {
				return err
			}
			if k > 0 {
				r.add(podAdds, warm, mebibytes, pss-before)
			}
			before = pss
		}
		if err := p.end(); err != nil {
			return err
		}
	}
	return nil
}

// pods fills the machine with pods of a sandbox and a member, as many as kubelet lets a node have, and looks what they take
// of it while they are idle.
func pods(h *host, n repetitions, r *result) (err error) {
	var all []*pod
	defer func() {
		for _, p := range all {
			if ended := p.end(); err == nil {
				err = ended
			}
		}
	}()
	what := fmt.Sprintf("%d pods: ", n.pods)
	for i := range n.pods {
		p := &pod{h: h, s: h.boxlite()}
		all = append(all, p)
		began := time.Now()
		for k := range 2 {
			if _, err := p.begin(fmt.Sprintf("bench-node-%d-%d", i, k)); err != nil {
				return err
			}
		}
		r.add(what+"create and start", warm, seconds, time.Since(began).Seconds())
	}
	time.Sleep(settle)
	var before []int
	for _, p := range all {
		pss, err := p.pss()
		if err != nil {
			return err
		}
		r.add(what+"memory", warm, mebibytes, pss)
		ticks, err := p.ticks()
		if err != nil {
			return err
		}
		before = append(before, ticks)
	}
	began := time.Now()
	time.Sleep(n.idle)
	for i, p := range all {
		ticks, err := p.ticks()
		if err != nil {
			return err
		}
		r.add(what+"processors, idle", warm, processorTime, float64(ticks-before[i])*10/time.Since(began).Seconds())
	}
	return nil
}

// podTargets judges what members cost.
func podTargets(r *result) []target {
	return []target{
		{What: podSecond + " / of the sandbox", Got: r.medianOf(podSecond, warm) / r.medianOf(podFirst, warm), Limit: 0.6},
		{What: podThird + " / of the sandbox", Got: r.medianOf(podThird, warm) / r.medianOf(podFirst, warm), Limit: 0.6},
		{What: podAdds + ", MiB", Got: r.medianOf(podAdds, warm), Limit: 16},
	}
}
